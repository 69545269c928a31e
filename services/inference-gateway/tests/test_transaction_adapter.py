"""The adapter: what comes in is what goes out, and what it puts together from bytes is what protobuf would write."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from feature_store.definitions import Entity, FeatureView
from feature_store.online import ViewRead
from feature_store.sharding import shard_of
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_gateway.decision import Decision, Request
from inference_gateway.errors import InvalidRequest
from inference_gateway.transaction_adapter import REPEATED, TransactionAdapter, UnsupportedPlan
from inference_gateway.wire import varint
from tests.gateway_scene import START_US, transaction
from trine.events.v1 import events_pb2 as events
from trine.scoring.v1 import scoring_pb2 as scoring

from models.fraud.features import PLAN

RELEASE = "fraud-0123456789ab"
ADAPTER = TransactionAdapter(PLAN, 64)
ADAPTER.features[RELEASE] = PLAN.features
u32 = st.integers(0, 2**32 - 1)
names = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True)
float32s = st.floats(0, 1, width=32)
reads = st.builds(
    ViewRead,
    view=names, entity=st.sampled_from(["customer", "terminal"]), key=names, version=names, topic=names,
    topic_id=st.text(max_size=22), shard=st.integers(0, 4_095), offset=st.integers(0, 2**62),
    tail_ids=st.lists(st.integers(0, 2**63 - 1), max_size=6).map(tuple), known=st.booleans(), lost=st.booleans(),
)  # fmt: skip


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    d = Decision(
        RELEASE,
        draw(st.integers(1, 3)), draw(float32s), draw(st.integers(1, 3)), draw(st.sampled_from(["", "deadline"])),
        draw(st.lists(names, max_size=2)),
    )  # fmt: skip
    d.decided_at_us = draw(st.integers(0, 2**60))
    d.lag_ms, d.queue_us, d.features_us, d.model_us, d.record_us, d.total_us = draw(st.tuples(*[u32] * 6))
    d.inputs = draw(st.lists(reads, max_size=3))
    if draw(st.booleans()):
        d.vector = np.array(draw(st.lists(st.floats(width=32, allow_nan=False), min_size=15, max_size=15)), np.float32)
    return d


def latency(d: Decision) -> dict[str, int]:
    return {n: getattr(d, n) for n in ("queue_us", "features_us", "model_us", "record_us", "total_us")}


@settings(deadline=None)
@given(decisions())
def test_a_record_is_what_protobuf_would_write(d: Decision) -> None:
    request = ADAPTER.request(transaction("tx-1").transaction)
    found = events.DecisionRecord.FromString(ADAPTER.record(request, d))
    expected = events.DecisionRecord(
        decision_id="tx-1", transaction=events.Transaction.FromString(request.event), verdict=d.verdict,  # type: ignore[arg-type]
        score=d.score, source=d.source, release=RELEASE, rules=d.rules,  # type: ignore[arg-type]
        vector=[] if d.vector is None else d.vector.tolist(), decided_at_us=d.decided_at_us, feature_lag_ms=d.lag_ms,
        latency=events.StageLatency(**latency(d)), fallback_reason=d.reason,
        inputs=[
            events.ViewInput(
                view=v.view, entity=v.entity, key=v.key, state_version=v.version, topic=v.topic, topic_id=v.topic_id,
                partition=v.shard, offset=v.offset, tail_ids=v.tail_ids, known=v.known, lost=v.lost,
            )
            for v in d.inputs
        ],
    )  # fmt: skip
    assert found == expected


@settings(deadline=None)
@given(decisions())
def test_a_response_tells_the_decision(d: Decision) -> None:
    request = ADAPTER.request(transaction("tx-1").transaction)
    response = ADAPTER.response(request, d)
    found = scoring.ScoreTransactionResponse.FromString(response)
    assert (found.transaction_id, found.verdict, found.score, found.source) == ("tx-1", d.verdict, d.score, d.source)
    assert (found.feature_lag_ms, found.fallback_reason, list(found.rules)) == (d.lag_ms, d.reason, list(d.rules))
    assert {n: getattr(found.latency, n) for n in latency(d)} == latency(d)
    assert set(found.new_entities) == {v.entity for v in d.inputs if not v.known and not v.lost}
    assert len(set(found.new_entities)) == len(found.new_entities)
    explained = scoring.ScoreTransactionResponse.FromString(ADAPTER.explained(response, d.vector))
    if d.vector is not None:
        assert dict(explained.features) == dict(zip(PLAN.features, d.vector.tolist(), strict=True))
    explained.ClearField("features")
    assert explained == found
    assert scoring.ScoreTransactionResponse.FromString(response + REPEATED).repeated_request


@settings(deadline=None)
@given(
    names,
    names,
    names,
    st.integers(0, 10**12),
    st.integers(1, time.time_ns() // 1_000),
    st.sampled_from(["EUR", "JPY"]),
)
def test_a_request_becomes_the_event_and_its_keys(
    id_: str, customer: str, terminal: str, amount: int, at_us: int, currency: str
) -> None:
    sent = transaction(id_, customer=customer, terminal=terminal, amount=amount, at_us=at_us, currency=currency)
    request = ADAPTER.unary(sent.SerializeToString())
    assert events.Transaction.FromString(request.event) == events.Transaction(
        transaction_id=id_, event_time_us=at_us, customer_id=customer, terminal_id=terminal, amount=amount,
        currency=currency,
    )  # fmt: skip
    features = request.features
    assert (features.event_id, features.time_us) == (id_, at_us)
    assert features.keys == {"customer": customer, "terminal": terminal}
    assert features.fields == {"amount": amount}
    assert request.kafka_key == customer.encode()
    assert request.partition == shard_of(customer, 64)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused_by_field(data: bytes) -> None:
    found: list[object] = []
    for parse in (ADAPTER.unary, ADAPTER.batch):
        try:
            result: object = parse(data)
        except InvalidRequest as error:
            result = error
        found += result if isinstance(result, list) else [result]
    for item in found:
        assert isinstance(item, Request) or (isinstance(item, InvalidRequest) and item.field)


def test_fingerprints_differ_where_payloads_do() -> None:
    variants = [
        transaction("x"),
        transaction("x", customer="d"),
        transaction("x", terminal="u"),
        transaction("x", amount=2),
        transaction("x", amount=0),
        transaction("x", at_us=START_US + 1),
        transaction("x", currency="USD"),
    ]
    prints = [ADAPTER.request(v.transaction).features.fingerprint for v in variants]
    assert len(set(prints)) == len(variants)
    assert all(len(p) == 16 for p in prints)
    finer = transaction("x")
    finer.transaction.event_time.nanos += 999
    same = ADAPTER.request(finer.transaction).features
    assert same == ADAPTER.request(transaction("x").transaction).features, "finer than a microsecond is cut off"


def test_plans_that_a_transaction_cannot_feed_are_refused() -> None:
    other = replace(PLAN.source, message="trine.events.v1.Ping")
    with pytest.raises(UnsupportedPlan, match=r"trine\.events\.v1\.Ping"):
        TransactionAdapter(replace(PLAN, source=other, views=()), 64)
    view = PLAN.views[0]
    cab = FeatureView("cab", Entity("cab", "cab_id"), view.source, view.aggregations, view.windows)
    with pytest.raises(UnsupportedPlan, match="cab"):
        TransactionAdapter(replace(PLAN, views=(*PLAN.views, cab)), 64)


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_varints_are_protobufs(value: int) -> None:
    from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]  # the reference

    assert varint(value) == _VarintBytes(value)
