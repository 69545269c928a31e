"""A promotion under load: refused until everybody has the release, then at once, without a failed request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis
from feature_store import state_views
from feature_store.definitions import Count
from feature_store.keys import FIRST_VERSION
from inference_gateway.shadow import SHADOW_TOPIC
from model_release import Release
from model_release.rollout import Pointer
from model_release.rollout import promoted as move_to
from model_release.rollout_store import RolloutStore
from model_release.scoring_module import load
from model_release.testing import write_toy_release
from service_kit.run import EXIT_REFUSED
from tests.gateway_scene import Gateway, NewGateway, Topic, build_state, transaction, wait_for
from tests.rollout_scene import Clients, Operator, WorkerReports, registrar
from trine_cli.local.errors import ProcessDied
from trine_cli.local.fixtures import PrivateRedis
from trine_cli.local.torchserve import TorchServe

from models.fraud.features import PLAN

pytestmark = pytest.mark.timeout(900)


@dataclass
class Scene:
    gateway: Gateway
    releases: Path
    operator: Operator
    url: str
    worker: WorkerReports


@pytest.fixture(scope="session")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Of the same plan as `release`, with other weights; staged by nobody yet."""
    return write_toy_release(tmp_path_factory.mktemp("next"), PLAN, seed=12)


@pytest.fixture
def rollout(
    state: str, release: Release, torchserve: TorchServe, new_gateway: NewGateway, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Scene]:  # fmt: skip
    """A gateway of two processes, TorchServe with its registrar, a worker's word, and `release` alone in the folder."""
    releases = tmp_path / "releases"
    shutil.copytree(release.path, releases / release.id)
    service = registrar(torchserve, releases, state, tmp_path)
    with service, WorkerReports(state, PLAN) as worker:
        gateway = new_gateway(
            processes=2, redis_url=state, releases=releases, torchserve_grpc=torchserve.inference,
            rollout_refresh_s=0.1, deadline_ms=10_000,
            longest_deadline_ms=10_000,
        )  # fmt: skip
        wait_for("the model answers", gateway.model_answers, 240)
        yield Scene(gateway, releases, Operator(state, capfd), state, worker)


def stage(scene: Scene, release: Release) -> None:
    """As an image's init container does: under a hidden name first."""
    shutil.copytree(release.path, scene.releases / f".{release.id}")
    (scene.releases / f".{release.id}").rename(scene.releases / release.id)


def promoted(scene: Scene, *words: object, timeout_s: float = 240.0) -> dict[str, object]:
    """What `trine release promote` says once it is not refused any more for what is still being loaded."""
    outcome: list[dict[str, object]] = []
    told: list[str] = []

    def attempt() -> bool:
        code, result, text = scene.operator("promote", "fraud", *words)
        assert code in (0, 5), text
        outcome[:], told[:] = [result], [text]
        return code == 0

    try:
        wait_for(f"promoted {words}", attempt, timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}: {told}") from None
    return outcome[0]


def test_promote_and_roll_back_under_load(
    rollout: Scene, release: Release, next_release: Release, kafka_bootstrap: str
) -> None:
    decisions = Topic.now(kafka_bootstrap, "trine.decisions")
    with Clients([rollout.gateway.address], threads=3) as clients:
        assert clients.releases_from_now() == {release.id}
        code, _, text = rollout.operator("promote", "fraud", next_release.id)
        assert code == 5, text
        assert "registrar" in text
        assert text.count("gateway ") == 2, "each process is named"
        assert clients.releases_from_now() == {release.id}, "refused: nothing moved"

        stage(rollout, next_release)
        result = promoted(rollout, next_release.id)
        assert result["changed"]
        assert result["not_following"] == []
        # Every process has said that it follows: from now on nobody is answered by the release before.
        assert clients.releases_from_now() == {next_release.id}

        code, result, text = rollout.operator("promote", "fraud", next_release.id)
        assert (code, result["changed"]) == (0, False), text
        code, result, text = rollout.operator("rollback", "fraud")
        assert code == 0, text
        assert clients.releases_from_now() == {release.id}
        code, _, text = rollout.operator("rollback", "fraud")
        assert code == 3, "what was taken off does not come back by a second rollback"
    answers = clients.answers
    assert answers.failed == []
    assert set(answers.reasons) == {""}, "the model answered everything"
    recorded = {record.release for record in decisions.decisions()}
    assert recorded == {release.id, next_release.id}
    assert rollout.gateway.metric("decisions_total", release=next_release.id) > 30
    assert rollout.gateway.metric("decision_seconds_count", release=next_release.id) > 30
    assert rollout.gateway.metric("score_ratio_count", release=next_release.id) > 30
    code, shown, text = rollout.operator("status", "fraud")
    assert code == 0
    assert shown["pointer"]["generation"] == 3  # type: ignore[index]


def test_a_corrupt_candidate_is_refused_by_name_and_the_old_one_serves_on(
    rollout: Scene, release: Release, next_release: Release
) -> None:
    stage(rollout, next_release)
    module = rollout.releases / next_release.id / "module.pt2"
    content = bytearray(module.read_bytes())
    content[len(content) // 2] ^= 1
    module.write_bytes(content)

    def told() -> bool:
        code, _, text = rollout.operator("promote", "fraud", next_release.id)
        assert code == 5
        return text.count("module.pt2: sha256 is") >= 3  # both gateways, and the registrar

    wait_for("everybody has seen it", told, 120)
    assert rollout.gateway.score(transaction()).release == release.id
    # Made whole again it is taken.
    content[len(content) // 2] ^= 1
    module.write_bytes(content)
    promoted(rollout, next_release.id)
    assert rollout.gateway.score(transaction()).release == next_release.id


def test_a_canary_keeps_its_customers_grows_by_others_and_ends(
    rollout: Scene, release: Release, next_release: Release, new_gateway: NewGateway, torchserve: TorchServe
) -> None:
    stage(rollout, next_release)
    promoted(rollout, next_release.id, "--canary", "30%")
    with Clients([rollout.gateway.address], customers=60, threads=3) as clients:
        assert clients.releases_from_now(200) == {release.id, next_release.id}
        # One that starts meanwhile knows of it before its first answer.
        other = new_gateway(
            redis_url=rollout.url,
            releases=rollout.releases,
            torchserve_grpc=torchserve.inference,
            deadline_ms=10_000,
            longest_deadline_ms=10_000,
        )
        wait_for("the model answers", other.model_answers, 240)
    first = clients.answers
    assert first.failed == []
    assert all(len(set(names)) == 1 for names in first.releases.values()), "nobody changed sides"
    sides = {customer: names[0] for customer, names in first.releases.items()}
    share = sum(name == next_release.id for name in sides.values()) / len(sides)
    assert 0.1 < share < 0.5
    for customer, name in list(sides.items())[:20]:
        assert other.score(transaction(customer=customer)).release == name

    promoted(rollout, next_release.id, "--canary", "70%")
    with Clients([rollout.gateway.address, other.address], customers=60, threads=3) as clients:
        clients.releases_from_now(200)
        # A canary that is rolled back leaves the current release alone.
        code, _, text = rollout.operator("rollback", "fraud")
        assert code == 0, text
        assert clients.releases_from_now(100) == {release.id}
    second = clients.answers
    assert second.failed == []
    grown = {customer: names[0] for customer, names in second.releases.items()}
    assert all(grown[customer] == next_release.id for customer, name in sides.items() if name == next_release.id)
    assert sum(n == next_release.id for n in grown.values()) > sum(n == next_release.id for n in sides.values())
    assert rollout.operator.pointer().current == release.id


def test_a_shadow_scores_along_and_answers_nobody(
    rollout: Scene, release: Release, next_release: Release, kafka_bootstrap: str, torchserve: TorchServe
) -> None:
    decisions, shadows = Topic.now(kafka_bootstrap, "trine.decisions"), Topic.now(kafka_bootstrap, SHADOW_TOPIC)
    stage(rollout, next_release)
    promoted(rollout, next_release.id, "--shadow")
    with Clients([rollout.gateway.address]) as clients:
        assert clients.releases_from_now(100) == {release.id}
    assert clients.answers.failed == []
    assert set(clients.answers.reasons) == {""}

    def scored() -> float:
        return rollout.gateway.metric("shadow_decisions_total", release=next_release.id)

    answered = rollout.gateway.metric("decisions_total")
    wait_for("all are scored or counted", lambda: scored() + rollout.gateway.metric("shadow_missed_total") == answered)
    assert scored() > 0.9 * answered
    assert rollout.gateway.metric("shadow_difference_ratio_count", release=next_release.id) == scored()
    wait_for("all are recorded", lambda: len(shadows.messages()) == scored())
    by_id = {record.decision_id: record for record in decisions.decisions()}
    assert {record.release for record in by_id.values()} == {release.id}
    module = load(next_release.path)
    records = shadows.decisions()
    rows = np.array([record.vector for record in records], dtype=np.float32)
    scores = np.array([record.score for record in records], dtype=np.float32)
    assert (module(rows).view(np.uint32) == scores.view(np.uint32)).all(), "the shadow's own, to the bit"
    for record in records:
        assert record.release == next_release.id
        assert record.inputs == by_id[record.decision_id].inputs
        assert record.transaction == by_id[record.decision_id].transaction

    # Its model server answers no more: nobody who waits for an answer notices.
    httpx.delete(f"{torchserve.management_url}/models/{next_release.id}", timeout=30)
    with Clients([rollout.gateway.address]) as clients:
        clients.releases_from_now(50)
    assert clients.answers.failed == []
    assert set(clients.answers.reasons) == {""}
    code, _, text = rollout.operator("rollback", "fraud", "--shadow")
    assert code == 0, text
    assert rollout.operator.pointer().releases == (release.id,)


def test_the_pointer_last_seen_holds_while_redis_is_away_also_over_a_restart(
    private_redis: PrivateRedis, release: Release, next_release: Release, new_gateway: NewGateway, tmp_path: Path
) -> None:
    server = private_redis()
    build_state(server.url)
    releases = tmp_path / "releases"
    for one in (release, next_release):
        shutil.copytree(one.path, releases / one.id)
    gateway = new_gateway(redis_url=server.url, releases=releases, rollout_refresh_s=0.1)
    with redis.Redis.from_url(server.url) as client:
        store = RolloutStore(client)
        pointer = store.read("fraud")
        assert pointer is not None
        assert pointer.current == release.id, "what the settings say, where nobody has promoted anything"
        moved = store.move(pointer, move_to(pointer, next_release.id), "test")
    wait_for("it follows", lambda: gateway.score(transaction()).release == next_release.id)
    server.stop()
    wait_for("it has noticed", lambda: "rollout" in gateway.degraded())
    assert gateway.score(transaction()).release == next_release.id
    gateway.stop()
    gateway.start()
    assert gateway.score(transaction()).release == next_release.id, "the settings still name the other"
    # A Redis that comes back empty is told what serves.
    shutil.rmtree(server.folder, ignore_errors=True)
    server.start()
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        wait_for("the pointer is written again", lambda: RolloutStore(client).read("fraud") == moved)
    assert gateway.score(transaction()).release == next_release.id


def test_a_gateway_without_the_current_release_does_not_start(
    state: str, release: Release, next_release: Release, new_gateway: NewGateway, tmp_path: Path
) -> None:
    releases = tmp_path / "releases"
    shutil.copytree(release.path, releases / release.id)
    with redis.Redis.from_url(state) as client:
        RolloutStore(client).begin(Pointer("fraud", next_release.id))
    with pytest.raises(ProcessDied) as caught:
        new_gateway(redis_url=state, releases=releases)
    assert caught.value.returncode == EXIT_REFUSED
    assert f"{next_release.id} is the current release" in str(caught.value)


RUSH = replace(PLAN.views[0], name="customer_rush", aggregations=(Count(),), windows=(timedelta(hours=1),))
WITH_RUSH = replace(PLAN, views=(RUSH, *PLAN.views))


def test_a_release_with_a_new_view_is_refused_until_the_state_has_it(
    rollout: Scene, release: Release, kafka_bootstrap: str
) -> None:
    decisions = Topic.now(kafka_bootstrap, "trine.decisions")
    other = write_toy_release(rollout.releases, WITH_RUSH, seed=13)

    def refused_for(reason: str) -> None:
        def told() -> bool:
            code, _, text = rollout.operator("promote", "fraud", other.id)
            assert code == 5, text
            return reason in text

        wait_for(f"refused: {reason}", told, 120)

    refused_for("needs customer_rush, which the feature state (version 1) does not have")
    assert rollout.gateway.score(transaction()).release == release.id
    with redis.Redis.from_url(rollout.url) as client:
        state_views.record(client, FIRST_VERSION, WITH_RUSH)  # what a rebuild leaves
    refused_for("of-the-test/1: does not keep customer_rush")
    rollout.worker.plan = WITH_RUSH
    refused_for("behind with the views that")  # what came before the tails had them is not absorbed yet
    build_state(rollout.url, WITH_RUSH)
    with Clients([rollout.gateway.address]) as clients:
        promoted(rollout, other.id)
        assert clients.releases_from_now() == {other.id}
        # The view is new to the gateway and yet has every event of before: of the state, and of the tails.
        first = rollout.gateway.score(transaction(customer="c-new")).features["customer_rush_count_1h"]
        second = rollout.gateway.score(transaction(customer="c-new")).features["customer_rush_count_1h"]
        assert second == first + 1
        code, _, text = rollout.operator("rollback", "fraud")
        assert code == 0, text
        assert clients.releases_from_now() == {release.id}
        third = rollout.gateway.score(transaction(customer="c-new"))
        assert "customer_rush_count_1h" not in third.features
    promoted(rollout, other.id)
    assert rollout.gateway.score(transaction(customer="c-new")).features["customer_rush_count_1h"] == first + 3
    assert clients.answers.failed == []
    for one in (release, other):
        records = [record for record in decisions.decisions() if record.release == one.id]
        assert {len(record.inputs) for record in records} == {len(one.plan.views)}
        rows = np.array([record.vector for record in records], dtype=np.float32)
        scores = np.array([record.score for record in records], dtype=np.float32)
        assert (load(one.path)(rows).view(np.uint32) == scores.view(np.uint32)).all()
