"""TorchServe scaled to zero and back: everybody is answered, in time, and by the model again afterwards."""

from __future__ import annotations

import time

import pytest
from trine_k8s.counting import await_counted
from trine_k8s.installation import Installation
from trine_k8s.load import Load

pytestmark = pytest.mark.timeout(1_200, func_only=True)

AROUND_S = 5.0


def test_scaled_to_zero_and_back(trine: Installation, target: str, rate: float) -> None:
    replicas, pods = trine.workload("torchserve").spec.replicas, trine.pods("torchserve")
    with Load(target, rate=rate) as load:
        load.await_time(time.time() + AROUND_S)
        began = time.time()
        trine.scale("torchserve", 0)
        for pod in pods:
            # One that is told to end answers on for its notice.
            trine.await_gone(pod, 180)
        away = time.time()
        load.await_time(away + 2 * AROUND_S)
        trine.scale("torchserve", replicas)
        back = time.time()
        trine.await_ready("torchserve")
        # The gateway looks at a model that was away with pauses, and at its golden rows first.
        load.await_time(time.time() + 6 * AROUND_S)
        ended = time.time()
    outcome = load.outcome
    assert not outcome.failures, outcome.summary()
    assert not outcome.unanswered
    assert outcome.late_by_gateway == 0, outcome.summary()
    assert outcome.between(0, began).share_by_model >= 0.99
    # Its pod answers until it is gone.
    assert outcome.between(away + 1, back).share_by_model == 0.0
    assert outcome.between(ended - AROUND_S, ended).share_by_model >= 0.99, outcome.summary()
    await_counted(trine, outcome.customers())
