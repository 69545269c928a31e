"""Overload, short deadlines and SIGTERM: everybody gets an answer."""

from __future__ import annotations

import time
from collections import Counter

import grpc
import pytest
from tests.gateway_scene import DECISIONS, START_US, NewGateway, Topic, new_id, refused, transaction, wait_for
from trine.scoring.v1 import scoring_pb2 as scoring

pytestmark = pytest.mark.timeout(180)


def bulk(count: int, customer: str = "bulk") -> scoring.ScoreTransactionsRequest:
    return scoring.ScoreTransactionsRequest(
        transactions=[
            transaction(customer=f"{customer}-{k % 100}", at_us=START_US + k).transaction for k in range(count)
        ]
    )


def test_overload_is_answered_by_the_fallback_and_counted(
    new_gateway: NewGateway, state: str, kafka_bootstrap: str
) -> None:
    topic = Topic.now(kafka_bootstrap, DECISIONS)
    gateway = new_gateway(redis_url=state, max_waiting=8, max_batch=4, feature_lanes=1)
    gateway.score(transaction())
    calls = [
        gateway.stub.ScoreTransaction.future(transaction(customer=f"o-{k}"), timeout=10, wait_for_ready=True)
        for k in range(400)
    ]
    found = [call.result() for call in calls]
    reasons = Counter(r.fallback_reason for r in found)
    assert set(reasons) == {"overload", "model_down"}, reasons
    assert gateway.metric("fallbacks_total", reason="overload") == reasons["overload"]
    ids = {r.transaction_id for r in found}
    wait_for("all recorded", lambda: ids <= {d.decision_id for d in topic.decisions()})


def test_bulk_waits_where_unary_would_be_turned_to_the_fallback(new_gateway: NewGateway, state: str) -> None:
    gateway = new_gateway(redis_url=state, max_waiting=64, max_batch=16, bulk_deadline_ms=20_000)
    requests = [bulk(200) for _ in range(10)]
    responses = list(gateway.stub.ScoreTransactions(iter(requests), timeout=60))
    assert len(responses) == 10
    for request, response in zip(requests, responses, strict=True):
        sent = [t.transaction_id for t in request.transactions]
        assert [i.response.transaction_id for i in response.items] == sent
        assert {i.response.fallback_reason for i in response.items} == {"model_down"}


def test_a_deadline_too_short_for_anything_is_kept_or_told(new_gateway: NewGateway, state: str) -> None:
    gateway = new_gateway(redis_url=state)
    gateway.score(transaction())
    for _ in range(20):
        error = refused(lambda: gateway.score(transaction(), timeout_s=0.005))
        assert error is None or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert gateway.score(transaction()).verdict


def test_sigterm_answers_all_in_flight_and_leaves_nothing_behind(
    new_gateway: NewGateway, state: str, kafka_bootstrap: str
) -> None:
    topic = Topic.now(kafka_bootstrap, DECISIONS)
    gateway = new_gateway(redis_url=state)
    gateway.score(transaction())
    calls = [
        gateway.stub.ScoreTransaction.future(transaction(customer=f"d-{k}"), timeout=20, wait_for_ready=True)
        for k in range(300)
    ]
    calls[0].result()
    began = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - began < 20
    errors = [refused(call.result) for call in calls]
    ids = {call.result().transaction_id for call, error in zip(calls, errors, strict=True) if error is None}
    # Others came after the door was shut, and are told so: another process may take them.
    codes = {error.code() for error in errors if error is not None}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert ids
    assert ids <= {d.decision_id for d in topic.decisions()}, "what was answered is in Kafka before the process ends"
    assert not gateway.spooled()
    # What was turned away was not taken in either.
    assert len({d.decision_id for d in topic.decisions()} - ids) <= 1 + len(calls) - len(ids)


def test_processes_share_the_ports_and_see_each_other(new_gateway: NewGateway, state: str) -> None:
    gateway = new_gateway(processes=2, redis_url=state)
    found = []
    for k in range(20):
        with grpc.insecure_channel(gateway.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            from trine.scoring.v1 import scoring_pb2_grpc

            stub = scoring_pb2_grpc.ScoringServiceStub(channel)
            request = transaction(new_id(), customer="shared", at_us=START_US + k)
            response = stub.ScoreTransaction(request, timeout=5, metadata=(("trine-explain", "1"),))
            found.append(round(response.features["customer_count_1d"]))
    assert found == list(range(1, 21))
    folders = {p.parent.name for p in gateway.spool.glob("*/lock")}
    assert folders == {"0", "1"}
    assert gateway.metric("decisions_total") == 20
    assert gateway.stop() == 0
