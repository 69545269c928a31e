"""Published predictions by gRPC and REST: from one run each, whatever is published or rolled back meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import httpx
import pytest
import redis
from batch_scorer.job import Output
from batch_scorer.registry import Registry
from batch_scorer.runs import Run, block_key
from batch_scorer.testing import publish_toy_run
from tests.gateway_scene import Gateway, NewGateway, build_state, refused, wait_for
from trine.predictions.v1 import predictions_pb2 as pb
from trine.predictions.v1 import predictions_pb2_grpc
from trine_cli.local.fixtures import PrivateRedis
from trine_cli.local.redis_server import RedisServer

MONDAY_US, DAY_US = 1_535_155_200_000_000, 86_400_000_000
OUTPUTS = (Output("score"), Output("visits", "int64"), Output("why", "string"), Output("taste", "vector", 3))
KEYS = [str(i) for i in range(300)]
"""Of six blocks."""


def rows(night: int) -> dict[str, dict[str, object]]:
    """Everything a key gets says which night it is from."""
    return {
        key: {"score": night / 64, "visits": night, "why": f"night {night}", "taste": [float(night)] * 3}
        for key in KEYS
    }


@pytest.fixture
def client(state: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(state) as client:
        yield client


@pytest.fixture
def gateway(new_gateway: NewGateway, state: str) -> Gateway:
    return new_gateway(redis_url=state)


@pytest.fixture
def stub(gateway: Gateway) -> Iterator[predictions_pb2_grpc.PredictionServiceStub]:
    with grpc.insecure_channel(gateway.address) as channel:
        yield predictions_pb2_grpc.PredictionServiceStub(channel)


def batch(stub: predictions_pb2_grpc.PredictionServiceStub, keys: list[str]) -> pb.BatchGetPredictionsResponse:
    return stub.BatchGetPredictions(pb.BatchGetPredictionsRequest(job="churn", keys=keys), timeout=10)


def error_of(call: object) -> tuple[grpc.StatusCode, str]:
    error = refused(call)  # type: ignore[arg-type]
    assert error is not None
    return error.code(), error.details() or ""


def test_what_a_key_gets_and_of_which_run(
    gateway: Gateway, stub: predictions_pb2_grpc.PredictionServiceStub, client: redis.Redis
) -> None:
    now_us = time.time_ns() // 1_000
    run = publish_toy_run(client, "churn", now_us - 3_600_000_000, rows(7), OUTPUTS, release="churn-0123456789ab")
    found = stub.GetPrediction(pb.GetPredictionRequest(job="churn", key="17"), timeout=10)
    values = found.prediction.values
    assert (values["score"].number, values["visits"].integer, values["why"].text) == (7 / 64, 7, "night 7")
    assert list(values["taste"].vector.values) == [7.0] * 3
    assert (found.run.run, found.run.release, found.run.stale) == (run.run, "churn-0123456789ab", False)
    assert found.run.cutoff.ToMicroseconds() == run.cutoff_us
    assert 3_600 <= found.run.age_seconds < 3_660

    reply = httpx.get(f"{gateway.http_url}/v1/predictions/churn/17", timeout=10)
    assert reply.status_code == 200
    assert reply.json()["values"] == {"score": 7 / 64, "visits": 7, "why": "night 7", "taste": [7.0] * 3}
    assert reply.json()["run"] | {"run": run.run, "stale": False} == reply.json()["run"]

    many = batch(stub, ["5", "nobody", "299", "5"])
    assert [prediction.key for prediction in many.predictions] == ["5", "299", "5"]
    assert list(many.unknown_keys) == ["nobody"]

    old = publish_toy_run(client, "churn", MONDAY_US, rows(8), OUTPUTS)
    found = stub.GetPrediction(pb.GetPredictionRequest(job="churn", key="17"), timeout=10)
    assert (found.run.run, found.run.stale, found.prediction.values["visits"].integer) == (old.run, True, 8)


def test_a_ranking_best_first(stub: predictions_pb2_grpc.PredictionServiceStub, client: redis.Redis) -> None:
    ranking = [{"item": f"film-{i}", "score": 1 - i / 8} for i in range(5)]
    content: dict[str, dict[str, object]] = {"u1": {"items": ranking}, "u2": {"items": []}}
    publish_toy_run(client, "recommendations", MONDAY_US, content, [Output("items", "ranking")])
    found = stub.GetRecommendations(pb.GetRecommendationsRequest(user_id="u1", limit=3), timeout=10)
    assert [(item.item_id, item.score) for item in found.items] == [("film-0", 1), ("film-1", 0.875), ("film-2", 0.75)]
    assert len(stub.GetRecommendations(pb.GetRecommendationsRequest(user_id="u1"), timeout=10).items) == 5
    assert not stub.GetRecommendations(pb.GetRecommendationsRequest(user_id="u2"), timeout=10).items
    code, text = error_of(lambda: stub.GetRecommendations(pb.GetRecommendationsRequest(user_id="u3"), timeout=10))
    assert code == grpc.StatusCode.NOT_FOUND
    assert "u3" in text


def test_what_is_not_there_and_what_is_no_key(
    gateway: Gateway, stub: predictions_pb2_grpc.PredictionServiceStub, client: redis.Redis
) -> None:
    run = publish_toy_run(client, "churn", MONDAY_US, rows(1), OUTPUTS)

    def get(job: str, key: str) -> tuple[grpc.StatusCode, str]:
        return error_of(lambda: stub.GetPrediction(pb.GetPredictionRequest(job=job, key=key), timeout=10))

    for job, key, code, named in (
        ("churn", "nobody", grpc.StatusCode.NOT_FOUND, "nobody"),
        ("weather", "1", grpc.StatusCode.NOT_FOUND, "weather"),
        ("churn", "", grpc.StatusCode.INVALID_ARGUMENT, "key"),
        ("Churn!", "1", grpc.StatusCode.INVALID_ARGUMENT, "Churn!"),
    ):
        found, text = get(job, key)
        assert (found, named in text) == (code, True), text
    code, text = error_of(lambda: batch(stub, []))
    assert (code, "keys" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, text = error_of(lambda: batch(stub, ["1", "x" * 257]))
    assert (code, "keys[1]" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, text = error_of(lambda: batch(stub, ["1"] * 1_001))
    assert (code, "1001" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    for path, status in (("churn/nobody", 404), ("weather/1", 404), ("churn/" + "x" * 300, 422)):
        reply = httpx.get(f"{gateway.http_url}/v1/predictions/{path}", timeout=10)
        assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")

    client.unlink(*(block_key(run.run, block) for block in range(run.blocks)))
    code, text = get("churn", "1")
    assert (code, run.run in text) == (grpc.StatusCode.UNAVAILABLE, True)


def test_redis_away_and_back(new_gateway: NewGateway, private_redis: PrivateRedis) -> None:
    server: RedisServer = private_redis()
    build_state(server.url)
    with server.connect() as client:
        publish_toy_run(client, "churn", MONDAY_US, rows(1), OUTPUTS)
    gateway = new_gateway(redis_url=server.url)
    with grpc.insecure_channel(gateway.address) as channel:
        stub = predictions_pb2_grpc.PredictionServiceStub(channel)
        assert len(batch(stub, KEYS).predictions) == len(KEYS)
        server.stop()
        code, text = error_of(lambda: batch(stub, ["1"]))
        assert (code, "Redis" in text) == (grpc.StatusCode.UNAVAILABLE, True)
        assert httpx.get(f"{gateway.http_url}/v1/predictions/churn/1", timeout=10).status_code == 503
        server.start()
        wait_for("reads again", lambda: refused(lambda: batch(stub, ["1"])) is None)


def test_no_answer_is_mixed_or_missing_while_runs_come_and_go(
    stub: predictions_pb2_grpc.PredictionServiceStub, client: redis.Redis
) -> None:
    publish_toy_run(client, "churn", MONDAY_US, rows(0), OUTPUTS)
    registry, done = Registry(client), threading.Event()
    published: dict[str, int] = {registry.current("churn").run: 0}  # type: ignore[union-attr]
    seen: list[str] = []
    wrong: list[object] = []

    def hammer() -> None:
        while not done.is_set():
            try:
                found = batch(stub, KEYS)
            except grpc.RpcError as error:
                wrong.append(error)
                return
            nights = {prediction.values["visits"].integer for prediction in found.predictions}
            if len(found.predictions) != len(KEYS) or len(nights) != 1:
                wrong.append((found.run.run, len(found.predictions), nights))
            night = nights.pop()
            # Its name is known a moment after it is published.
            if published.setdefault(found.run.run, night) != night:
                wrong.append((found.run.run, night))
            seen.append(found.run.run)

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    runs: list[Run] = []
    for night in range(1, 25):
        reads = len(seen)
        runs.append(publish_toy_run(client, "churn", MONDAY_US + night * DAY_US, rows(night), OUTPUTS))
        if night % 3 == 0:
            registry.roll_back("churn", "", 3_600)
        wait_for("a read of it", lambda reads=reads: len(seen) > reads + 1 or wrong)  # type: ignore[misc]
    done.set()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    assert all(published.get(run.run, night) == night for night, run in enumerate(runs, 1))
    assert len(set(seen)) > 12, "the hammer saw hardly any of them"
