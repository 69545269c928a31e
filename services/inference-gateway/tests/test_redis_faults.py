"""Redis away, misconfigured, or without the state it should have: rules, tagged, and back by itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from feature_store import keys
from feature_store.sharding import shard_of
from service_kit.run import EXIT_REFUSED
from tests.gateway_scene import (
    DECISIONS,
    SHARDS,
    TRANSACTIONS,
    NewGateway,
    Topic,
    build_state,
    new_id,
    transaction,
    wait_for,
)
from trine.events.v1 import events_pb2 as events
from trine.scoring.v1 import scoring_pb2 as scoring
from trine_cli.local.errors import ProcessDied
from trine_cli.local.fixtures import PrivateRedis
from xxhash import xxh3_128_digest

pytestmark = pytest.mark.timeout(180)


def test_redis_away_rules_answer_at_once_and_it_comes_back(
    new_gateway: NewGateway, private_redis: PrivateRedis, kafka_bootstrap: str
) -> None:
    server = private_redis()
    build_state(server.url)
    topic = Topic.now(kafka_bootstrap, TRANSACTIONS)
    gateway = new_gateway(redis_url=server.url)
    assert gateway.score(transaction()).fallback_reason == "model_down"
    server.kill()

    large, small = new_id(), new_id()
    first = gateway.score(transaction(large, amount=25_000))
    assert first.fallback_reason == "features_down"
    assert first.source == scoring.SCORE_SOURCE_RULES
    assert list(first.rules) == ["large"]
    assert first.verdict == scoring.VERDICT_DENY
    assert not first.features
    began = time.monotonic()
    for _ in range(50):
        assert gateway.score(transaction()).fallback_reason == "features_down"
    assert time.monotonic() - began < 5, "nobody waits for a Redis that is known to be away"
    assert gateway.score(transaction(small, amount=1)).verdict == scoring.VERDICT_APPROVE
    assert gateway.score(transaction(small, amount=1)).repeated_request, "this process knows its own answers"
    assert "features" in gateway.degraded()
    wait_for("events in Kafka", lambda: {large, small} <= {t.transaction_id for t in topic.transactions()})

    server.start()
    wait_for("features again", lambda: gateway.score(transaction()).fallback_reason == "model_down")
    assert "features" not in gateway.degraded()
    with redis.Redis.from_url(server.url) as client:
        wait_for("what was answered meanwhile is in the ledger", lambda: client.exists(keys.ledger(large)))


def test_a_redis_that_hangs_costs_the_first_ones_their_deadline_and_no_more(
    new_gateway: NewGateway, private_redis: PrivateRedis
) -> None:
    server = private_redis()
    build_state(server.url)
    gateway = new_gateway(redis_url=server.url)
    gateway.score(transaction())
    server.pause()
    with ThreadPoolExecutor(20) as pool:
        began = time.monotonic()
        found = list(pool.map(lambda _: gateway.score(transaction(), timeout_s=0.5), range(40)))
    assert {r.source for r in found} == {scoring.SCORE_SOURCE_RULES}
    assert {r.fallback_reason for r in found} <= {"deadline", "features_down"}
    assert time.monotonic() - began < 3
    server.resume()
    wait_for("features again", lambda: gateway.score(transaction()).features)


def test_an_event_decided_at_its_deadline_goes_out_whatever_the_ledger_says_later(
    new_gateway: NewGateway, private_redis: PrivateRedis, kafka_bootstrap: str
) -> None:
    """The read is still under way when rules answer, and the ledger may know that very answer before the read does."""
    server = private_redis()
    build_state(server.url)
    gateway = new_gateway(redis_url=server.url, redis_timeout_ms=10_000)
    gateway.score(transaction())
    events_topic, decisions = Topic.now(kafka_bootstrap, TRANSACTIONS), Topic.now(kafka_bootstrap, DECISIONS)
    id_ = new_id()
    request = transaction(id_)
    sent = request.transaction
    event = events.Transaction(
        transaction_id=id_, event_time_us=sent.event_time.ToMicroseconds(), customer_id=sent.customer_id,
        terminal_id=sent.terminal_id, amount=sent.amount_minor, currency=sent.currency,
    ).SerializeToString()  # fmt: skip
    with redis.Redis.from_url(server.url) as client:
        client.set(keys.ledger(id_), xxh3_128_digest(event) + b"D")
    server.pause()
    assert gateway.score(request, timeout_s=0.5).fallback_reason == "deadline"
    server.resume()
    wait_for("the decision", lambda: id_ in {d.decision_id for d in decisions.decisions()})
    wait_for("its event", lambda: id_ in {t.transaction_id for t in events_topic.transactions()})


def test_lost_state_is_told_apart_from_a_new_customer(
    new_gateway: NewGateway, state: str, kafka_bootstrap: str
) -> None:
    topic = Topic.now(kafka_bootstrap, DECISIONS)
    gateway = new_gateway(redis_url=state)
    new = gateway.score(transaction(customer="fresh", terminal="t-fresh"))
    assert set(new.new_entities) == {"customer", "terminal"}
    assert new.fallback_reason == "model_down"
    assert gateway.score(transaction(customer="fresh", terminal="t-fresh")).new_entities == ["terminal"]

    lost = "lost-customer"
    with redis.Redis.from_url(state) as client:
        client.delete(keys.meta("customer", shard_of(lost, SHARDS), keys.FIRST_VERSION))
    id_ = new_id()
    response = gateway.score(transaction(id_, customer=lost, terminal="t-fresh"))
    assert response.fallback_reason == "features_lost"
    assert response.source == scoring.SCORE_SOURCE_RULES
    assert "customer" not in response.new_entities
    assert "customer_count_1d" not in response.features
    assert "terminal_count_1d" in response.features
    wait_for("the decision", lambda: id_ in {d.decision_id for d in topic.decisions()})
    (record,) = [d for d in topic.decisions() if d.decision_id == id_]
    assert {v.view: v.lost for v in record.inputs} == {"customer": True, "terminal": False}


def test_a_redis_that_evicts_is_refused_at_start(new_gateway: NewGateway, private_redis: PrivateRedis) -> None:
    server = private_redis(maxmemory_policy="allkeys-lru")
    with pytest.raises(ProcessDied) as caught:
        new_gateway(redis_url=server.url)
    assert caught.value.returncode == EXIT_REFUSED
    assert "noeviction" in str(caught.value)
