"""Kafka away, the gateway killed, the spool full: what was answered reaches Kafka, in order, or the policy rules."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from model_release import Release
from model_release.manifest import Manifest
from tests.gateway_scene import (
    DECISIONS,
    SHARDS,
    START_US,
    TRANSACTIONS,
    Gateway,
    NewGateway,
    Topic,
    new_id,
    refused,
    transaction,
    wait_for,
)
from trine_cli.local.fixtures import PrivateKafka

pytestmark = pytest.mark.timeout(240)


def send(gateway: Gateway, count: int, customers: int = 7) -> list[str]:
    """`count` answered transactions, one after the other; their ids in order."""
    ids = [new_id() for _ in range(count)]
    for k, id_ in enumerate(ids):
        response = gateway.score(transaction(id_, customer=f"k-{k % customers}", at_us=START_US + k))
        assert response.verdict
    return ids


def in_order(found: Sequence[str], sent: Sequence[str]) -> bool:
    """Whether the first appearances of `sent` in `found` keep their order (what comes twice changes nothing)."""
    first = list(dict.fromkeys(i for i in found if i in set(sent)))
    return first == [i for i in sent if i in set(first)]


def by_partition(topic: Topic) -> dict[int, list[str]]:
    from trine.events.v1.events_pb2 import Transaction

    found: dict[int, list[str]] = defaultdict(list)
    for partition, value in topic.messages():
        found[partition].append(Transaction.FromString(value).transaction_id)
    return found


def arrived(topic: Topic, ids: Sequence[str]) -> bool:
    return set(ids) <= {d.decision_id for d in topic.decisions()}


def test_kafka_away_decisions_go_on_and_arrive_in_order(
    new_gateway: NewGateway, private_kafka: PrivateKafka, state: str
) -> None:
    kafka = private_kafka()
    events, decisions = Topic.now(kafka.bootstrap, TRANSACTIONS), Topic.now(kafka.bootstrap, DECISIONS)
    gateway = new_gateway(redis_url=state, kafka_bootstrap=kafka.bootstrap)
    ids = send(gateway, 30)
    wait_for("decisions before", lambda: arrived(decisions, ids))
    kafka.kill()
    began = time.monotonic()
    ids += send(gateway, 200)
    assert time.monotonic() - began < 30, "nobody waits for Kafka"
    wait_for("health tells", lambda: "kafka" in gateway.degraded())
    assert gateway.metric("spool_bytes") > 0
    kafka.start()
    wait_for("decisions after", lambda: arrived(decisions, ids), 60)
    for found in by_partition(events).values():
        assert in_order(found, ids)
    assert {i for found in by_partition(events).values() for i in found} >= set(ids)
    wait_for("health is well again", lambda: "kafka" not in gateway.degraded())
    wait_for("the spool is empty", lambda: gateway.metric("spool_bytes") == 0)


def test_more_than_memory_holds_waits_in_files_and_arrives_in_order(
    new_gateway: NewGateway, private_kafka: PrivateKafka, state: str
) -> None:
    """Kafka's queue and the recorder's memory are made small, so that the files are read back."""
    kafka = private_kafka()
    events, decisions = Topic.now(kafka.bootstrap, TRANSACTIONS), Topic.now(kafka.bootstrap, DECISIONS)
    small: dict[str, Any] = {
        "kafka_queue_bytes": 1 << 16,
        "recorder_memory_bytes": 1 << 16,
        "spool_segment_bytes": 1 << 16,
    }
    gateway = new_gateway(redis_url=state, kafka_bootstrap=kafka.bootstrap, **small)
    kafka.kill()
    ids = send(gateway, 600)
    assert gateway.metric("kafka_backlog_state") == 1
    assert len(gateway.spooled()) > 2
    kafka.start()
    ids += send(gateway, 50)
    wait_for("everything", lambda: arrived(decisions, ids), 60)
    for found in by_partition(events).values():
        assert in_order(found, ids)
    wait_for("memory is enough again", lambda: gateway.metric("kafka_backlog_state") == 0)
    wait_for("files are deleted", lambda: len(gateway.spooled()) <= 1)


def test_the_end_waits_for_a_kafka_that_restarts_too(
    new_gateway: NewGateway, private_kafka: PrivateKafka, state: str
) -> None:
    """As an upgrade of both at once: the spool's files are gone with the pod, and nothing that was in them."""
    kafka = private_kafka()
    decisions = Topic.now(kafka.bootstrap, DECISIONS)
    gateway = new_gateway(redis_url=state, kafka_bootstrap=kafka.bootstrap, spool_drain_s=60)
    kafka.kill()
    ids = send(gateway, 50)
    assert gateway.process is not None
    gateway.process.signal(signal.SIGTERM)
    wait_for("it waits", lambda: "waiting for Kafka to take what the spool holds" in gateway.log.read_text(), 30)
    kafka.start()
    assert gateway.process.wait(60) == 0
    assert "left in the spool" not in gateway.log.read_text()
    wait_for("every decision", lambda: arrived(decisions, ids), 30)


def test_starts_without_kafka_and_without_redis(new_gateway: NewGateway, private_kafka: PrivateKafka) -> None:
    kafka = private_kafka()
    decisions = Topic.now(kafka.bootstrap, DECISIONS)
    kafka.stop()
    gateway = new_gateway(redis_url="redis://127.0.0.1:1/0", kafka_bootstrap=kafka.bootstrap)
    ids = send(gateway, 5)
    kafka.start()
    wait_for("decisions", lambda: arrived(decisions, ids), 60)
    assert {d.fallback_reason for d in decisions.decisions()} == {"features_down"}


def load(gateway: Gateway, answered: list[str], stop: threading.Event, seed: int) -> None:
    """Unary calls, many a second, until one fails; ids whose answer reached the client."""
    k = 0
    while not stop.is_set():
        calls = []
        for _ in range(16):
            k += 1
            id_ = new_id()
            calls.append((id_, gateway.stub.ScoreTransaction.future(
                transaction(id_, customer=f"l-{seed}-{k % 50}", at_us=START_US + k), timeout=20)))  # fmt: skip
        for id_, call in calls:
            try:
                call.result()
                answered.append(id_)
            except grpc.RpcError:
                stop.set()


def reached(answered: Sequence[str], enough: int) -> bool:
    return len(answered) >= enough


def test_kill_9_under_load_loses_no_answered_event(
    new_gateway: NewGateway, private_kafka: PrivateKafka, state: str
) -> None:
    kafka = private_kafka()
    events, decisions = Topic.now(kafka.bootstrap, TRANSACTIONS), Topic.now(kafka.bootstrap, DECISIONS)
    gateway = new_gateway(redis_url=state, kafka_bootstrap=kafka.bootstrap)
    answered: list[str] = []
    for round_ in range(3):
        # In the first round Kafka is up, later it is away while the gateway is killed: all of it is in the spool.
        if round_ == 1:
            kafka.pause()
        stop = threading.Event()
        users = [threading.Thread(target=load, args=(gateway, answered, stop, n)) for n in range(2)]
        for user in users:
            user.start()
        enough = len(answered) + 150
        wait_for("some answers", partial(reached, answered, enough))
        gateway.crash()
        stop.set()
        for user in users:
            user.join()
        if round_ == 2:
            kafka.resume()
        gateway.start()
    wait_for("every answered decision", lambda: arrived(decisions, answered), 60)
    assert set(answered) <= {t.transaction_id for t in events.transactions()}


def with_policy(release: Release, folder: Path, unrecorded: str) -> Release:
    """The same release under another policy."""
    from model_release.testing import write_toy_release

    from models.fraud.features import PLAN

    made = write_toy_release(folder, PLAN, seed=5)
    if made.manifest.policy.unrecorded == unrecorded:
        return made
    from model_release.manifest import content_hash, release_id

    body = json.loads((made.path / "manifest.json").read_text())
    body["policy"]["unrecorded"] = unrecorded
    old = body["release"]
    digest = content_hash(body)
    body["content_hash"], body["release"] = digest, release_id(body["model"], digest)
    body["files"] = {n.replace(old, body["release"]): h for n, h in body["files"].items()}
    Manifest.model_validate(body)
    target = made.path.with_name(body["release"])
    made.path.rename(target)
    (target / f"{old}.mar").rename(target / f"{body['release']}.mar")
    (target / "manifest.json").write_text(json.dumps(body))
    from model_release import open_release

    return replace(open_release(target))


@pytest.mark.parametrize("policy", ["refuse", "answer"])
def test_a_full_spool_follows_the_policy(
    policy: str, new_gateway: NewGateway, private_kafka: PrivateKafka, state: str, release: Release, tmp_path: Path
) -> None:
    own = with_policy(release, tmp_path / "releases", policy)
    kafka = private_kafka()
    decisions = Topic.now(kafka.bootstrap, DECISIONS)
    gateway = new_gateway(
        redis_url=state, kafka_bootstrap=kafka.bootstrap, releases=own.path.parent, release=own.id,
        spool_max_bytes=1 << 20, recorder_memory_bytes=1 << 16,
    )  # fmt: skip
    ids = send(gateway, 1)
    wait_for("the first decision", lambda: arrived(decisions, ids))
    kafka.kill()
    wait_for("health tells", lambda: send(gateway, 1) and "kafka" in gateway.degraded())
    unwanted: list[str] = []
    for _ in range(6_000):
        if gateway.metric("unrecorded_total") > 5:
            break
        for _ in range(100):
            id_ = new_id()
            error = refused(partial(gateway.score, transaction(id_)))
            (ids if error is None else unwanted).append(id_)
            if error is not None:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert "recorded" in (error.details() or "")
    assert gateway.metric("unrecorded_total") > 5
    assert bool(unwanted) == (policy == "refuse")
    kafka.start()
    wait_for("room again", lambda: gateway.metric("spool_bytes") == 0, 60)
    last = new_id()
    assert gateway.score(transaction(last)).verdict
    wait_for("the last decision", lambda: arrived(decisions, [last]))
    found = {d.decision_id for d in decisions.decisions()}
    if policy == "refuse":
        assert set(ids) <= found, "whatever was answered is recorded"
    assert not set(unwanted) & found
    assert len(decisions.since) == SHARDS
