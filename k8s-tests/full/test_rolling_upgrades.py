"""A new version of a part replaces the old one, and goes back, under constant load: nobody notices."""

from __future__ import annotations

import time

import pytest
from trine_k8s.counting import await_counted
from trine_k8s.installation import Installation, Values
from trine_k8s.load import Load, Outcome

pytestmark = pytest.mark.timeout(1_800, func_only=True)

#: Seconds of load before the upgrade, and after the way back.
AROUND_S = 5.0
#: What the machine's own business may add to the share of late answers at the client.
MORE_LATE = 0.03


def rolled(component: str, stamp: str) -> Values:
    """Values that change the pods of one component and nothing else."""
    part: Values = {"pod": {"annotations": {"trine-test/rolled": stamp}}}
    return {"worker": {"features": part}} if component == "worker" else {component: part}


@pytest.mark.parametrize("component", ["gateway", "torchserve", "worker"])
def test_upgrade_and_rollback_under_load(
    trine: Installation, target: str, rate: float, control: Outcome, component: str
) -> None:
    before = {p.metadata.uid for p in trine.pods(component)}
    with Load(target, rate=rate) as load:
        load.await_time(time.time() + AROUND_S)
        began = time.time()
        trine.upgrade(rolled(component, load.prefix))
        trine.await_ready(component)
        upgraded = {p.metadata.uid for p in trine.pods(component)}
        trine.rollback()
        trine.await_ready(component)
        ended = time.time()
        load.await_time(ended + AROUND_S)
    outcome = load.outcome
    back = {p.metadata.uid for p in trine.pods(component)}
    assert not before & upgraded, "no pod is as it was before the upgrade"
    assert not upgraded & back, "no pod is as it was before the rollback"

    assert not outcome.failures, outcome.summary()
    assert not outcome.unanswered
    assert outcome.late_by_gateway == 0, outcome.summary()
    assert outcome.late_by_client <= control.late_by_client + MORE_LATE, f"{outcome.summary()}; {control.summary()}"
    if component == "torchserve":
        quiet = outcome.between(0, began).share_by_model, outcome.between(ended, ended + AROUND_S).share_by_model
        assert min(quiet) >= 0.99, outcome.summary()
    else:
        assert outcome.share_by_model >= 0.99, outcome.summary()
    await_counted(trine, outcome.customers())
