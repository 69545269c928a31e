"""A pod of each component is killed under load: every transaction gets an answer and counts once."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from model_release import Release
from trine_k8s.counting import await_archived, await_counted, replayed
from trine_k8s.installation import Installation
from trine_k8s.load import Load

pytestmark = pytest.mark.timeout(1_800, func_only=True)

AROUND_S = 5.0


@pytest.mark.parametrize(
    "component", ["worker", "gateway", "redis", "kafka", "torchserve", "archiver", "feature-store"]
)
def test_kill_under_load(
    trine: Installation,
    target: str,
    rate: float,
    component: str,
    releases: tuple[Path, list[Release]],
    tmp_path: Path,
) -> None:
    victim = trine.pods(component)[0]
    with Load(target, rate=rate) as load:
        load.await_time(time.time() + AROUND_S)
        trine.namespace.delete_pod(victim.metadata.name, grace_s=0)
        trine.await_gone(victim)
        trine.await_ready(component)
        load.await_time(time.time() + AROUND_S)
    outcome = load.outcome
    assert not outcome.unanswered, outcome.summary()
    await_counted(trine, outcome.customers())
    warehouse = await_archived(trine, outcome.answered, load.prefix, tmp_path)
    report, decisions = replayed(warehouse, releases[0], load.prefix)
    assert decisions == Counter(list(outcome.answered))
    assert report.different == 0, report.examples
