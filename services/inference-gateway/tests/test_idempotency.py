"""One id, one decision: retries, duplicates at the same time and on other processes, and ids used twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tests.gateway_scene import (
    DECISIONS,
    EXPLAIN,
    TRANSACTIONS,
    NewGateway,
    NewGateways,
    Topic,
    new_id,
    transaction,
    wait_for,
)
from trine.scoring.v1 import scoring_pb2 as scoring


def decision(response: scoring.ScoreTransactionResponse) -> bytes:
    """What must not change on a retry: everything but the mark that it is one."""
    copy = scoring.ScoreTransactionResponse()
    copy.CopyFrom(response)
    copy.repeated_request = False
    return copy.SerializeToString(deterministic=True)


def test_a_retry_gets_the_stored_decision_from_any_process(new_gateways: NewGateways, state: str) -> None:
    first, second = new_gateways(2, redis_url=state)
    request = transaction(amount=5_000)
    original = first.score(request)
    assert not original.repeated_request
    for gateway in (first, second, first, second):
        again = gateway.score(request)
        assert again.repeated_request
        assert decision(again) == decision(original)


def test_another_payload_under_the_same_id_is_refused_everywhere(
    new_gateways: NewGateways, state: str, kafka_bootstrap: str
) -> None:
    first, second = new_gateways(2, redis_url=state)
    topic = Topic.now(kafka_bootstrap, TRANSACTIONS)
    id_ = new_id()
    original = first.score(transaction(id_, amount=5_000))
    for gateway in (first, second):
        error = gateway.refusal(transaction(id_, amount=5_001))
        assert error.code() is grpc.StatusCode.ALREADY_EXISTS
        assert id_ in (error.details() or "")
    assert decision(second.score(transaction(id_, amount=5_000))) == decision(original)
    after = new_id()
    for gateway in (first, second):
        gateway.score(transaction(after))
    wait_for("events in Kafka", lambda: after in {t.transaction_id for t in topic.transactions()})
    assert [t.amount for t in topic.transactions() if t.transaction_id == id_] == [5_000], "the refused one stays out"


def test_concurrent_duplicates_wait_for_the_first(new_gateways: NewGateways, state: str, kafka_bootstrap: str) -> None:
    gateways = new_gateways(3, redis_url=state)
    for gateway in gateways:
        gateway.score(transaction(customer="warm-up"))
    topic = Topic.now(kafka_bootstrap, DECISIONS)
    requests = [transaction(customer=f"dup-{k}") for k in range(10)]
    with ThreadPoolExecutor(60) as pool:
        calls = [[pool.submit(gateways[i % 3].score, r) for i in range(6)] for r in requests]
        found = [[call.result() for call in group] for group in calls]
    for group in found:
        assert len({decision(r) for r in group}) == 1
        assert sum(not r.repeated_request for r in group) == 1
    ids = {r.transaction.transaction_id for r in requests}
    wait_for("decisions", lambda: ids <= {d.decision_id for d in topic.decisions()})
    assert sorted(d.decision_id for d in topic.decisions() if d.decision_id in ids) == sorted(ids), "decided once each"


def test_duplicates_and_conflicts_inside_one_bulk_message(new_gateway: NewGateway, state: str) -> None:
    gateway = new_gateway(redis_url=state)
    id_ = new_id()
    same = transaction(id_).transaction
    other = transaction(id_, amount=9_999).transaction
    request = scoring.ScoreTransactionsRequest(transactions=[same, same, other, transaction().transaction])
    (response,) = gateway.stub.ScoreTransactions(iter([request]), timeout=10, metadata=EXPLAIN)
    first, second, third, fourth = response.items
    assert decision(first.response) == decision(second.response)
    assert [first.response.repeated_request, second.response.repeated_request] == [False, True]
    assert third.error.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    assert fourth.response.verdict


@pytest.mark.timeout(120)
def test_what_a_killed_process_began_is_taken_over(new_gateway: NewGateway, state: str) -> None:
    """The first gateway is killed between its ledger entry and its answer; the lease runs out; a retry is decided."""
    import redis
    from feature_store import keys
    from inference_gateway.transaction_adapter import TransactionAdapter

    from models.fraud.features import PLAN

    gateway = new_gateway(redis_url=state)
    request = transaction()
    features = TransactionAdapter(PLAN, 64).request(request.transaction).features
    with redis.Redis.from_url(state) as client:
        now = client.time()
        lease_end = now[0] * 1_000 + now[1] // 1_000 + 700
        client.set(keys.ledger(features.event_id), features.fingerprint + b"P%d" % lease_end)
    response = gateway.score(request)
    assert not response.repeated_request
    assert response.latency.total_us >= 100_000, "it waited for the first while that had its lease"
    assert response.features["customer_count_1d"] == 1
