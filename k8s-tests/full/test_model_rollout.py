"""Canary, shadow, promotion and rollback of a release on the cluster, under load, without a failed request."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from trine_k8s import sample_data
from trine_k8s.cluster import Cluster
from trine_k8s.images import releases_image
from trine_k8s.installation import Installation
from trine_k8s.load import Load
from trine_k8s.polling import eventually

pytestmark = pytest.mark.timeout(1_800, func_only=True)

MODEL = "fraud"
#: The pointer is read again within seconds.
NOTICED_S = 10.0


def trine_release(trine: Installation, *command: str) -> dict[str, Any]:
    """`trine release ...` in the cluster, as its operator runs it."""
    pod = trine.pods("feature-store")[0].metadata.name
    found: dict[str, Any] = json.loads(trine.namespace.exec(pod, "trine", "release", *command, "--json"))
    return found


def test_a_staged_release_is_a_canary_then_a_shadow_then_serves_and_goes_back(
    trine: Installation, target: str, rate: float, cluster: Cluster
) -> None:
    folder, (old, new) = sample_data.releases(11, 12)
    # It stays: whatever serves when this test ends must be there when pods start.
    trine.images = replace(trine.images, releases=releases_image(cluster, folder))
    trine.upgrade()
    trine.await_ready("gateway", "torchserve", "worker", "archiver", "feature-store")

    with Load(target, rate=rate) as load:
        load.await_time(time.time() + NOTICED_S)
        marks = [time.time()]

        def step(*command: str) -> None:
            # Refused until every process reports that it has the release.
            eventually(f"trine release {command}", lambda: [trine_release(trine, *command)], 180, 3)
            load.await_time(time.time() + NOTICED_S)
            marks.append(time.time())
            load.await_time(time.time() + 2 * NOTICED_S)
            marks.append(time.time())

        step("promote", MODEL, new.id, "--canary", "20%")
        step("promote", MODEL, new.id, "--canary", "60%")
        # A canary answers, so that it cannot be a shadow: it ends first.
        step("rollback", MODEL)
        step("promote", MODEL, new.id, "--shadow")
        step("promote", MODEL, new.id)
        step("rollback", MODEL)
    outcome = load.outcome
    assert not outcome.failures, outcome.summary()
    assert not outcome.unanswered
    assert outcome.share_by_model >= 0.99, outcome.summary()

    before, *steps = [outcome.between(a, b) for a, b in zip([0.0, *marks[1::2]], [marks[0], *marks[2::2]], strict=True)]
    few, more, ended, shadow, promoted, back = steps
    assert set(before.releases) == set(ended.releases) == {old.id}
    canary = [{a.customer for a in part.answered.values() if a.release == new.id} for part in (few, more)]
    others = [{a.customer for a in part.answered.values() if a.release == old.id} for part in (few, more)]
    assert not canary[0] & others[0], "a customer is on one side"
    assert not canary[1] & others[1], "a customer is on one side"
    assert canary[0], few.summary()
    assert not canary[0] & others[1], "raising the share only adds customers"
    assert len(canary[1]) > len(canary[0])
    assert set(shadow.releases) == {old.id}
    assert set(promoted.releases) == {new.id}
    assert set(back.releases) == {old.id}
