"""Redis' and Kafka's pods are deleted, one after the other, and come back with what they held."""

from __future__ import annotations

import pytest
from trine_k8s.counting import await_counted
from trine_k8s.installation import Installation
from trine_k8s.load import Load

pytestmark = pytest.mark.timeout(1_200, func_only=True)


@pytest.mark.parametrize("component", ["redis", "kafka"])
def test_deleted_and_back_with_its_data(trine: Installation, target: str, rate: float, component: str) -> None:
    with Load(target, rate=rate, seconds=10) as load:
        load.run_out()
    before = load.outcome.customers()
    await_counted(trine, before)

    pod = trine.pods(component)[0]
    trine.namespace.delete_pod(pod.metadata.name)
    trine.await_gone(pod)
    trine.await_ready(component)

    # What was there is there, and goes on: the same customers, new transactions.
    await_counted(trine, before)
    with Load(target, rate=rate, seconds=10, prefix=load.prefix, first=100_000) as more:
        more.run_out()
    assert not more.outcome.unanswered, more.outcome.summary()
    await_counted(trine, before + more.outcome.customers())
