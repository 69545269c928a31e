"""The model server killed, hanging, restarted, or with other weights: the fallback answers in time, tagged, until the
golden rows come back right."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from inference_gateway.model_server import TorchServeClient
from model_release import Release
from model_release.testing import write_toy_release
from tests.gateway_scene import DECISIONS, START_US, NewGateway, Topic, new_id, register, transaction, wait_for
from trine.scoring.v1 import scoring_pb2 as scoring
from trine_cli.local.fixtures import PrivateTorchServe
from trine_cli.local.torchserve import TorchServe

from models.fraud.features import PLAN

pytestmark = pytest.mark.timeout(240)

MODEL, RULES = scoring.SCORE_SOURCE_MODEL, scoring.SCORE_SOURCE_RULES


async def test_the_model_answers_with_the_releases_own_scores(
    new_gateway: NewGateway, state: str, model_server: TorchServe, release: Release, kafka_bootstrap: str
) -> None:
    import numpy as np

    topic = Topic.now(kafka_bootstrap, DECISIONS)
    gateway = new_gateway(redis_url=state, torchserve_grpc=model_server.inference)
    wait_for("the model is checked", gateway.model_answers)
    found = {}
    for k in range(20):
        id_ = new_id()
        found[id_] = gateway.score(transaction(id_, customer=f"m-{k % 3}", amount=100 + 7 * k, at_us=START_US + k))
    assert {r.source for r in found.values()} == {MODEL}
    assert {r.release for r in found.values()} == {release.id}
    wait_for("decisions", lambda: set(found) <= {d.decision_id for d in topic.decisions()})
    records = {d.decision_id: d for d in topic.decisions() if d.decision_id in found}
    client = TorchServeClient(model_server.inference)
    try:
        for id_, response in found.items():
            record = records[id_]
            vector = np.array(record.vector, dtype=np.float32)
            assert dict(zip(release.features, vector.tolist(), strict=True)) == dict(response.features)
            (score,) = await client.score(release.id, vector.reshape(1, -1), 10)
            assert score.tobytes() == np.float32(record.score).tobytes() == np.float32(response.score).tobytes()
            assert int(record.verdict) == int(response.verdict) == 1 + (score >= 0.25) + (score >= 0.75)
            assert record.transaction.transaction_id == id_
    finally:
        await client.close()


def test_killed_and_restarted(
    new_gateway: NewGateway, state: str, private_torchserve: PrivateTorchServe, release: Release
) -> None:
    server = private_torchserve()
    register(server, release)
    gateway = new_gateway(redis_url=state, torchserve_grpc=server.inference)
    wait_for("the model is checked", gateway.model_answers)
    assert gateway.score(transaction()).source == MODEL
    server.kill()
    first = gateway.score(transaction(amount=25_000))
    assert (first.source, first.fallback_reason) == (RULES, "model_down")
    assert first.features, "features are there, and the rules see them"
    assert list(first.rules) == ["large"]
    began = time.monotonic()
    for _ in range(30):
        assert gateway.score(transaction()).fallback_reason == "model_down"
    assert time.monotonic() - began < 3
    assert "model" in gateway.degraded()
    server.start()
    for _ in range(10):
        assert gateway.score(transaction()).fallback_reason == "model_down", "it serves nothing yet"
    register(server, release)
    wait_for("the model again", lambda: gateway.score(transaction()).source == MODEL)
    assert "model" not in gateway.degraded()


def test_a_server_that_hangs_is_answered_for_in_time(
    new_gateway: NewGateway, state: str, model_server: TorchServe
) -> None:
    # The gateway has 0.4 s; the client waits for longer, since both share the cores with other tests.
    gateway = new_gateway(
        redis_url=state, torchserve_grpc=model_server.inference, deadline_ms=400, longest_deadline_ms=400
    )
    wait_for("the model is checked", gateway.model_answers)
    gateway.score(transaction())

    def timed(_: int) -> tuple[float, scoring.ScoreTransactionResponse]:
        began = time.monotonic()
        response = gateway.score(transaction())
        return time.monotonic() - began, response

    # It is the session's, but nothing else of this session runs meanwhile.
    model_server.pause()
    try:
        with ThreadPoolExecutor(10) as pool:
            found = list(pool.map(timed, range(60)))
    finally:
        model_server.resume()
    assert {r.source for _, r in found} == {RULES}
    assert {r.fallback_reason for _, r in found} <= {"deadline", "model_down"}
    assert max(r.latency.total_us for _, r in found) < 600_000, "by the gateway's clock"
    assert max(seconds for seconds, _ in found) < 1.5
    assert sorted(seconds for seconds, _ in found)[30] < 0.2, "after the first few nobody waits"
    wait_for("the model again", lambda: gateway.score(transaction()).source == MODEL)


def test_other_weights_under_the_releases_name_are_not_used(
    new_gateway: NewGateway, state: str, torchserve: TorchServe, tmp_path: Path
) -> None:
    import httpx

    release = write_toy_release(tmp_path / "releases", PLAN, seed=98)
    other = write_toy_release(tmp_path / "other", PLAN, seed=99)
    query = {
        "url": other.archive_path.as_uri(),
        "model_name": release.id,
        "initial_workers": "1",
        "synchronous": "true",
    }
    assert httpx.post(f"{torchserve.management_url}/models", params=query, timeout=120).status_code == 200
    gateway = new_gateway(
        redis_url=state, torchserve_grpc=torchserve.inference, releases=release.path.parent, release=release.id
    )
    wait_for("the reason", lambda: "golden" in gateway.degraded().get("model", ""))
    assert gateway.score(transaction()).fallback_reason == "model_down"
    httpx.delete(f"{torchserve.management_url}/models/{release.id}", timeout=30)
