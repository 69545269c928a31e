"""A pod of each component is killed under load: every transaction gets an answer and counts once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from model_release import Release
from trine_k8s.counting import await_counted, await_replayed
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
    await_replayed(trine, outcome.answered, load.prefix, releases[0], tmp_path)
