"""Zero lag: a request sees every event before it, also the one of a moment ago on another process, with no worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from model_release import Release
from tests.gateway_scene import DECISIONS, SHARDS, START_US, Gateway, NewGateways, Topic, new_id, transaction, wait_for
from trine.events.v1.events_pb2 import DecisionRecord
from trine_cli.local.fixtures import PrivateKafka, PrivateRedis
from trine_cli.local.ports import free_port
from trine_cli.local.service import Service


def count(gateway: Gateway, id_: str, at_us: int, customer: str) -> int:
    response = gateway.score(transaction(id_, customer=customer, at_us=at_us))
    return round(response.features["customer_count_1d"])


def test_each_transaction_counts_all_before_it_on_any_process(new_gateways: NewGateways, state: str) -> None:
    gateways = new_gateways(3, redis_url=state)
    ids = [new_id() for _ in range(50)]
    found = [count(gateways[k % 3], id_, START_US + k, "sequential") for k, id_ in enumerate(ids)]
    assert found == list(range(1, 51))

    again = [
        gateways[(k + 1) % 3].score(transaction(id_, customer="sequential", at_us=START_US + k))
        for k, id_ in enumerate(ids)
    ]
    assert all(response.repeated_request for response in again)
    assert [round(response.features["customer_count_1d"]) for response in again] == found
    assert count(gateways[0], new_id(), START_US + 50, "sequential") == 51, "the retries counted nothing twice"


def test_concurrent_transactions_of_one_card_come_one_after_the_other(
    new_gateways: NewGateways, state: str, kafka_bootstrap: str
) -> None:
    gateways = new_gateways(3, redis_url=state)
    topic = Topic.now(kafka_bootstrap, DECISIONS)
    sent = dict.fromkeys((new_id() for _ in range(50)), START_US)
    with ThreadPoolExecutor(50) as pool:
        calls = {
            id_: pool.submit(count, gateways[k % 3], id_, at_us, "concurrent")
            for k, (id_, at_us) in enumerate(sent.items())
        }
        found = {id_: call.result() for id_, call in calls.items()}
    assert count(gateways[0], new_id(), START_US + 50, "concurrent") == 51

    decisions: dict[str, DecisionRecord] = {}
    wait_for("all decisions in Kafka", lambda: decisions.update(
        {d.decision_id: d for d in topic.decisions() if d.decision_id in sent}) or len(decisions) == 50)  # fmt: skip
    seen = {id_: {i for v in d.inputs if v.view == "customer" for i in v.tail_ids} for id_, d in decisions.items()}
    # Whoever came k-th to Redis saw k events: its own and the k - 1 before it. A permutation, whatever the gateway.
    assert sorted(map(len, seen.values())) == list(range(1, 51))
    assert sorted(found.values()) == list(range(1, 51)), "at one time, what had come counts, whatever its id"
    assert all(number == len(seen[id_]) for id_, number in found.items())


@pytest.mark.timeout(400)
def test_a_worker_that_slept_comes_to_the_state_of_one_that_did_not(
    new_gateways: NewGateways,
    private_redis: PrivateRedis,
    private_kafka: PrivateKafka,
    release: Release,
    tmp_path: Path,
) -> None:
    kafka, slept_in, calm_in = private_kafka(), private_redis(), private_redis()
    worker = new_worker(tmp_path / "slept.log", slept_in.url, kafka.bootstrap, release)
    gateways = new_gateways(3, redis_url=slept_in.url, kafka_bootstrap=kafka.bootstrap)
    with worker:
        wait_for("every shard has an owner", lambda: owned(slept_in.url) == 2 * SHARDS, 60)
        assert count(gateways[0], new_id(), START_US, "card") == 1
        wait_for("the first is absorbed", lambda: left_in_tails(slept_in.url) == 0)
        worker.pause()
        ids = [new_id() for _ in range(50)]
        found = [count(gateways[k % 3], id_, START_US + 1 + k, "card") for k, id_ in enumerate(ids)]
        assert found == list(range(2, 52)), "each is one more than before, with the worker stopped"
        retries = [count(gateways[(k + 1) % 3], id_, START_US + 1 + k, "card") for k, id_ in enumerate(ids)]
        assert retries == found
        worker.resume()
        wait_for("all are absorbed", lambda: left_in_tails(slept_in.url) == 0 and "card" in states(slept_in.url), 60)
        assert count(gateways[0], new_id(), START_US + 60, "card") == 52
        wait_for("the last too", lambda: left_in_tails(slept_in.url) == 0)
        wait_for("terminals too", lambda: {"card", "t-1"} <= states(slept_in.url).keys())
    for gateway in gateways:
        assert gateway.stop() == 0
    with new_worker(tmp_path / "calm.log", calm_in.url, kafka.bootstrap, release):
        wait_for("a calm run ends alike", lambda: states(calm_in.url) == states(slept_in.url), 180)


def new_worker(log: Path, redis_url: str, bootstrap: str, release: Release) -> Service:
    port = free_port()
    settings = {
        "redis_url": redis_url, "kafka_bootstrap": bootstrap, "releases": release.path.parent, "release": release.id,
        "worker_id": "zero-lag", "metrics_port": port, "shards": SHARDS, "host": "127.0.0.1",
    }  # fmt: skip
    env = {f"TRINE_WORKER_{name.upper()}": str(value) for name, value in settings.items()}
    return Service("worker", "stream_worker.main", log=log, address=f"127.0.0.1:{port}", env=env, http_port=port)


def owned(url: str) -> int:
    """Shards, of both entities, whose worker has said how far it is."""
    with redis.Redis.from_url(url) as client:
        return sum(client.hexists(key, "progress_us") for key in client.scan_iter("*}m:*", count=1_000))


def left_in_tails(url: str) -> int:
    """Events that requests appended and the worker has not absorbed."""
    with redis.Redis.from_url(url) as client:
        return sum(client.hlen(key) for key in client.scan_iter("*}t:*", count=1_000))


def states(url: str) -> dict[str, bytes]:
    """Packed state by entity key."""
    with redis.Redis.from_url(url) as client:
        return {key.decode().rsplit(":", 1)[1]: client.get(key) for key in client.scan_iter("*}s:*", count=1_000)}
