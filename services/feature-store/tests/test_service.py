"""The feature-store service as a process, over gRPC and REST, on a real Redis and Kafka."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import redis
from confluent_kafka import Producer
from feature_store.ids import id64_array
from feature_store.sharding import shard_of
from feature_store.updates import EventColumns, ShardUpdate, StateWriter
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from trine.events.v1.events_pb2 import DeadLetter, Transaction
from trine.features.v1 import features_pb2 as pb
from trine.features.v1 import features_pb2_grpc
from trine_cli.local.fixtures import SHARDS, NewTopics, PrivateRedis
from trine_cli.local.ports import HOST, free_ports
from trine_cli.local.service import Service

from models.fraud.features import PLAN

SECOND, DAY = 1_000_000, 86_400 * 1_000_000
T = 1_532_500_000_000_000
CUSTOMER, TRANSACTIONS = "customer", "trine.transactions"


def eventually(check: Callable[[], Any], within_s: float = 30.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)
    return found


class FeatureStore:
    """The process, and clients of both its interfaces."""

    def __init__(self, folder: Path, redis_url: str, kafka: str, letters: str = "trine.dead-letters") -> None:
        self.grpc_port, self.rest_port = free_ports(2)
        release = folder / "releases" / "fraud-000000000000"
        release.mkdir(parents=True, exist_ok=True)
        (release / "manifest.json").write_text(json.dumps({"plan": PLAN.to_json(), "created_at": "2026-01-01"}))
        settings = {
            "REDIS_URL": redis_url,
            "KAFKA_BOOTSTRAP": kafka,
            "RELEASES": folder / "releases",
            "GRPC_PORT": self.grpc_port,
            "REST_PORT": self.rest_port,
            "HOST": HOST,
            "SHARDS": SHARDS,
            "REFRESH_S": 0.2,
            "DEAD_LETTERS_TOPIC": letters,
        }
        self.log = folder / "feature-store.log"
        env = {f"TRINE_FEATURES_{key}": str(value) for key, value in settings.items()}
        self.service = Service(
            "feature-store",
            "feature_store.service.main",
            log=self.log,
            address=f"{HOST}:{self.grpc_port}",
            env=env,
            http_port=self.rest_port,
            grpc_port=self.grpc_port,
        )
        self.channel = grpc.insecure_channel(f"{HOST}:{self.grpc_port}")
        self.stub = features_pb2_grpc.FeatureStoreServiceStub(self.channel)
        self.rest = httpx.Client(base_url=f"http://{HOST}:{self.rest_port}", timeout=10)

    def get(self, **query: object) -> httpx.Response:
        return self.rest.post("/v1/features:get", json=query)

    def close(self) -> None:
        self.channel.close()
        self.rest.close()
        self.service.stop()


class State:
    """Customers' state in Redis, written as the stream worker does."""

    def __init__(self, client: redis.Redis) -> None:
        self.writer = StateWriter(client, PLAN, "w")
        self.at = {}
        for entity in ("customer", "terminal"):
            self.writer.claim(entity, PLAN.topic_of(entity), "tid", range(SHARDS))
            self.writer.heartbeat(entity, dict.fromkeys(range(SHARDS), time.time_ns() // 1_000))
        self.at = dict.fromkeys(range(SHARDS), 0)

    def absorb(self, key: str, times_us: Sequence[int], amounts: Sequence[int], progress_us: int | None = None) -> None:
        shard, n = shard_of(key, SHARDS), len(times_us)
        events = EventColumns(
            "transactions",
            [key],
            np.zeros(n, np.int64),
            np.array(times_us, np.int64),
            id64_array([f"{key}-{t}" for t in times_us]),
            {"amount": np.array(amounts, np.int64)},
        )
        now_us = progress_us or time.time_ns() // 1_000
        update = ShardUpdate(shard, self.at[shard], self.at[shard] + n, max(times_us), now_us, [events])
        (done,) = self.writer.apply(CUSTOMER, [update])
        assert done.status == "ok"
        self.at[shard] = done.offset


@pytest.fixture
def state(redis_url: str) -> Iterator[State]:
    with redis.Redis.from_url(redis_url) as client:
        yield State(client)


@pytest.fixture
def store(redis_url: str, state: State, kafka_bootstrap: str, tmp_path: Path) -> Iterator[FeatureStore]:
    it = FeatureStore(tmp_path, redis_url, kafka_bootstrap)
    it.service.start()
    yield it
    it.close()


def violation(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """The status code and the field at fault."""
    (raw,) = [item.value for item in error.trailing_metadata() if item.key == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(raw)
    bad = error_details_pb2.BadRequest()
    status.details[0].Unpack(bad)
    return error.code(), bad.field_violations[0].field


def test_views_features_and_errors_are_the_same_by_grpc_and_rest(store: FeatureStore, state: State) -> None:
    views = store.stub.ListViews(pb.ListViewsRequest(), timeout=10).views
    assert [v.name for v in views] == [v.name for v in PLAN.views]
    assert list(views[1].features) == list(PLAN.views[1].features)
    assert (views[1].delay_seconds, list(views[1].windows_seconds)) == (7 * 86_400, [86_400, 7 * 86_400, 30 * 86_400])
    assert store.rest.get("/v1/views").json()["views"][0]["fingerprint"] == views[0].fingerprint == PLAN.fingerprint

    # Two transactions of one day, one eight days before; as of a second after the last.
    state.absorb("C1", [T - 8 * DAY, T - SECOND, T], [5_000, 100, 300])
    asked = pb.GetFeaturesRequest(view=CUSTOMER, keys=["C1", "C9"])
    asked.as_of.FromMicroseconds(T + SECOND)
    known, new = store.stub.GetFeatures(asked, timeout=10).entities
    assert (known.key, known.known, new.key, new.known) == ("C1", True, "C9", False)
    assert dict(known.features) == {
        "customer_count_1d": 2, "customer_mean_amount_1d": 200,
        "customer_count_7d": 2, "customer_mean_amount_7d": 200,
        "customer_count_30d": 3, "customer_mean_amount_30d": 1_800,
    }  # fmt: skip
    assert set(new.features.values()) == {0}
    at = "2018-07-25T06:26:41Z"
    entities = store.get(view=CUSTOMER, keys=["C1", "C9"], as_of=at).json()["entities"]
    assert [(e["key"], e["features"], e["known"]) for e in entities] == [
        (e.key, dict(e.features), e.known) for e in (known, new)
    ]
    # Half a second before the last one; and without a time it is now, years later.
    asked.as_of.FromMicroseconds(T - SECOND // 2)
    assert store.stub.GetFeatures(asked, timeout=10).entities[0].features["customer_count_1d"] == 1
    assert store.get(view=CUSTOMER, keys=["C1"]).json()["entities"][0]["features"]["customer_count_30d"] == 0

    for change, field in (
        ({"keys": []}, "keys"),
        ({"keys": ["C1"] * 1_001}, "keys"),
        ({"keys": ["C1", "no spaces"]}, "keys.1"),
        ({"as_of": "1969-12-31T23:59:59Z"}, "as_of"),
        ({"as_of": "2018-07-20T00:00:00Z"}, "as_of"),
    ):
        query: dict[str, Any] = {"view": CUSTOMER, "keys": ["C1"], "as_of": at, **change}
        reply = store.get(**query)
        assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
        assert (reply.json()["field"], reply.json()["status"]) == (field, 422)
        asked = pb.GetFeaturesRequest(view=CUSTOMER, keys=query["keys"])
        asked.as_of.FromJsonString(query["as_of"])
        with pytest.raises(grpc.RpcError) as caught:
            store.stub.GetFeatures(asked, timeout=10)
        assert violation(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, field)
        assert caught.value.details() == reply.json()["detail"]
    assert "goes back to 2018-07-24T06:26:40" in reply.json()["detail"]
    assert store.get(view="moon", keys=["C1"]).status_code == 404
    with pytest.raises(grpc.RpcError) as caught:
        store.stub.GetFeatures(pb.GetFeaturesRequest(view="moon", keys=["C1"]), timeout=10)
    assert violation(caught.value) == (grpc.StatusCode.NOT_FOUND, "view")
    for body, field in (({"view": CUSTOMER}, "keys"), ({"view": CUSTOMER, "keys": ["C1"], "asof": at}, "asof")):
        assert store.get(**body).json()["field"] == field
    assert store.rest.post("/v1/features:get", content=b"{").json()["field"] == "body"
    assert store.rest.post("/v1/features:get", content=b" " * 200_000).json()["field"] == "body"

    page = store.rest.get("/metrics").text
    assert 'trine_features_requests_total{method="GetFeatures",outcome="invalid"} 5.0' in page
    health = health_pb2_grpc.HealthStub(store.channel)
    named = health_pb2.HealthCheckRequest(service="trine.features.v1.FeatureStoreService")
    assert health.Check(named, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    assert store.service.stop() == 0


def test_freshness_counts_what_is_not_absorbed_and_lost_state_is_said_so(
    store: FeatureStore, state: State, kafka_bootstrap: str, redis_url: str
) -> None:
    shard = shard_of("C1", SHARDS)

    def find() -> pb.ShardFreshness:
        shards = store.stub.GetFreshness(pb.GetFreshnessRequest(), timeout=10).shards
        assert len(shards) == 2 * SHARDS
        (found,) = [s for s in shards if (s.entity, s.shard) == (CUSTOMER, shard)]
        return found

    eventually(lambda: find().log_end_offset >= 0)
    before = find()
    assert (before.topic, before.offset, before.HasField("event_clock")) == (TRANSACTIONS, 0, False)
    assert before.lag_ms < 60_000
    producer = Producer({"bootstrap.servers": kafka_bootstrap})
    for i in range(3):
        event = Transaction(transaction_id=f"f{i}", event_time_us=T, customer_id="C1", amount=1, currency="EUR")
        producer.produce(TRANSACTIONS, event.SerializeToString(), partition=shard)
    assert producer.flush(20) == 0
    eventually(lambda: find().log_end_offset == before.log_end_offset + 3)

    state.absorb("C1", [T, T + SECOND], [100, 200], progress_us=time.time_ns() // 1_000 - 120 * SECOND)
    found = find()
    assert (found.offset, found.event_clock.ToMicroseconds()) == (2, T + SECOND)
    assert 120_000 <= found.lag_ms < 180_000
    rest = store.rest.get("/v1/freshness").json()["shards"][shard]
    assert (rest["offset"], rest["event_clock"]) == (2, "2018-07-25T06:26:41Z")
    metric = 'trine_features_state_lag_seconds{entity="customer"} 1'
    eventually(lambda: metric in store.rest.get("/metrics").text)
    assert 120_000 <= store.get(view=CUSTOMER, keys=["C1"]).json()["entities"][0]["feature_lag_ms"] < 180_000

    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    reply = store.get(view=CUSTOMER, keys=["C1"])
    assert (reply.status_code, reply.json()["field"]) == (503, "keys.0")
    assert "lost, damaged or not built" in reply.json()["detail"]
    with pytest.raises(grpc.RpcError) as caught:
        store.stub.GetFeatures(pb.GetFeaturesRequest(view=CUSTOMER, keys=["C1"]), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert find().offset == -1
    assert store.rest.get("/v1/freshness").json()["shards"][shard]["lag_ms"] is None
    eventually(lambda: 'shards_lost_state{entity="customer"} 8.0' in store.rest.get("/metrics").text)


def test_dead_letters_are_counted_by_reason_and_each_once(
    redis_url: str, state: State, kafka_bootstrap: str, new_topics: NewTopics, tmp_path: Path
) -> None:
    (topic,) = new_topics(partitions=4)
    producer = Producer({"bootstrap.servers": kafka_bootstrap})

    def letter(number: int, reason: str) -> None:
        value = DeadLetter(dead_letter_id=f"t/0/{number}", reason=reason).SerializeToString()
        producer.produce(topic, value, partition=number % 4)

    for number in range(10):
        letter(number, "late" if number < 7 else "malformed")
    producer.flush(20)
    store = FeatureStore(tmp_path, redis_url, kafka_bootstrap, letters=topic)
    try:
        store.service.start()

        def counts() -> dict[str, int]:
            return dict(store.stub.GetFreshness(pb.GetFreshnessRequest(), timeout=10).dead_letters)

        eventually(lambda: counts() == {"late": 7, "malformed": 3})
        letter(3, "late")  # lettered again by a worker that was killed
        letter(11, "something new")
        producer.produce(topic, b"\xff\xff not a letter", partition=0)
        producer.flush(20)
        eventually(lambda: counts() == {"late": 7, "malformed": 3, "other": 2})
        assert store.rest.get("/v1/freshness").json()["dead_letters"] == counts()
        assert 'trine_features_dead_letters_events{reason="late"} 7.0' in store.rest.get("/metrics").text
    finally:
        store.close()


def test_redis_and_kafka_may_be_away(private_redis: PrivateRedis, tmp_path: Path) -> None:
    server = private_redis()
    with server.connect() as client:
        State(client).absorb("C1", [T], [100])
    nowhere = f"{HOST}:{free_ports(1)[0]}"
    store = FeatureStore(tmp_path, server.url, nowhere)
    try:
        # Without Kafka: ready, and it says what it does not know.
        store.service.start()
        eventually(lambda: "kafka" in store.rest.get("/readyz").json()["degraded"])
        assert store.get(view=CUSTOMER, keys=["C1"]).status_code == 200
        began = time.monotonic()
        assert {s["log_end_offset"] for s in store.rest.get("/v1/freshness").json()["shards"]} == {None}
        assert time.monotonic() - began < 2, "a silent Kafka must not hold up readers"

        server.kill()
        assert store.get(view=CUSTOMER, keys=["C1"]).status_code == 503
        assert store.rest.get("/v1/freshness").status_code == 503
        eventually(lambda: store.rest.get("/readyz").status_code == 503)
        assert "redis" in store.rest.get("/readyz").json()["not_ready"]
        assert store.rest.get("/livez").status_code == 200
        server.start()
        eventually(lambda: store.rest.get("/readyz").status_code == 200)
    finally:
        store.close()


def test_redis_that_evicts_is_refused_at_start(private_redis: PrivateRedis, tmp_path: Path) -> None:
    server = private_redis(maxmemory_policy="allkeys-lru")
    store = FeatureStore(tmp_path, server.url, f"{HOST}:{free_ports(1)[0]}")
    store.service.launch()
    try:
        process = store.service.process
        assert process is not None
        assert eventually(lambda: process.returncode) == 78
        assert "allkeys-lru" in store.log.read_text()
    finally:
        store.close()
