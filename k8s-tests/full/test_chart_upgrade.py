"""From the last released chart, as its package is committed here, to this one: under load, with all data kept."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from trine_k8s.cluster import need
from trine_k8s.counting import await_counted
from trine_k8s.installation import CHART, Installation, NewInstallation
from trine_k8s.load import Load
from trine_k8s.outside import node_port

pytestmark = pytest.mark.timeout(1_800, func_only=True)

#: `helm package charts/trine -d k8s-tests/baseline` at a release; the one with the greatest version counts.
BASELINE = Path(__file__).parents[1] / "baseline"
RATE = 10.0
PARTS = ("kafka", "redis", "torchserve", "gateway", "worker", "archiver", "feature-store")


def test_upgrade_from_the_baseline(new_installation: NewInstallation) -> None:
    package = max(BASELINE.glob("trine-*.tgz"), key=_version)
    trine: Installation = new_installation(chart=package)
    trine.install()
    claims = _claims(trine)
    target = node_port(trine, "gateway", 50051)
    need(target is not None, "the nodes of this cluster cannot be reached from here, and a port-forward is of one pod")
    with Load(str(target), rate=RATE) as load:
        load.await_time(time.time() + 10)
        trine.upgrade(chart=CHART)
        trine.await_ready(*PARTS)
        load.await_time(time.time() + 5)
    outcome = load.outcome
    assert not outcome.unanswered, outcome.summary()
    assert claims.items() <= _claims(trine).items(), "volumes are kept"
    await_counted(trine, outcome.customers())


def _version(package: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in package.stem.removeprefix("trine-").split("-")[0].split("."))


def _claims(trine: Installation) -> dict[str, str]:
    found = trine.namespace.core.list_namespaced_persistent_volume_claim(trine.namespace.name).items
    return {c.metadata.name: c.metadata.uid for c in found}
