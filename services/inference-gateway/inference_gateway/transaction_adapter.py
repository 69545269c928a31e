"""The one adapter of the typed API: the only module that names a field of a transaction.

From a request's message to a validated `Request` (what features, Kafka and the ledger need), and from a `Decision`
back to the response and to the decision record. Everything else in the gateway runs what the release's plan declares.
"""

from __future__ import annotations

import time
from functools import lru_cache

import numpy as np
from feature_store.definitions import FeaturePlan
from feature_store.ids import ID_PATTERN
from feature_store.online import FeatureRequest
from feature_store.sharding import shard_of
from feature_store.validation import CURRENCIES, MAX_MINOR, MAX_TIME_US, first_problem
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from trine.events.v1 import events_pb2 as events
from trine.scoring.v1 import scoring_pb2 as scoring
from xxhash import xxh3_128_digest

from inference_gateway.decision import Decision, Request
from inference_gateway.errors import InvalidRequest
from inference_gateway.wire import bytes_tag, varint

EVENT_MESSAGE = events.Transaction.DESCRIPTOR.full_name
DECISION_MESSAGE = events.DecisionRecord.DESCRIPTOR.full_name
MAX_TRANSACTIONS = 1_024
_ENTITY_FIELDS = ("customer_id", "terminal_id")

_RECORD_EVENT = bytes_tag(events.DecisionRecord.DESCRIPTOR, "transaction")
_RECORD_INPUT = bytes_tag(events.DecisionRecord.DESCRIPTOR, "inputs")
_RECORD_VECTOR = bytes_tag(events.DecisionRecord.DESCRIPTOR, "vector")
_MINUTE_US = 60_000_000
_id = ID_PATTERN.fullmatch


class UnsupportedPlan(Exception):
    """A release whose plan asks for what a transaction does not have."""


class TransactionAdapter:
    """`live`: event times are checked against the wall clock too (a replay of old data needs it off)."""

    def __init__(
        self,
        plan: FeaturePlan,
        shards: int,
        *,
        live: bool = False,
        future_us: int = 5 * _MINUTE_US,
        past_us: int = 24 * 60 * _MINUTE_US,
    ) -> None:
        self.key_by(plan)
        #: The features of every release that answers, in the order of its vectors.
        self.features: dict[str, tuple[str, ...]] = {}
        self._shards = shards
        self._live, self._future_us, self._past_us = live, future_us, past_us
        self._step_us, self._latest_us = plan.max_step_us, 0

    def key_by(self, plan: FeaturePlan) -> None:
        """From the next request on, keys for this plan's entities. Raises UnsupportedPlan."""
        self.check(plan)
        self._customers = [e.name for e in plan.entities if e.key == "customer_id"]
        self._terminals = [e.name for e in plan.entities if e.key == "terminal_id"]

    @staticmethod
    def check(plan: FeaturePlan) -> None:
        """Raises UnsupportedPlan where a transaction lacks what the plan asks for."""
        if plan.source.message != EVENT_MESSAGE or not set(plan.source.fields) <= {"amount"}:
            raise UnsupportedPlan(
                f"plan {plan.model}: source {plan.source.name} carries {plan.source.message} with fields"
                f" {plan.source.fields}; this gateway scores {EVENT_MESSAGE} with field amount"
            )
        if strange := [e.name for e in plan.entities if e.key not in _ENTITY_FIELDS]:
            raise UnsupportedPlan(f"plan {plan.model}: entities {strange} are keyed by none of {_ENTITY_FIELDS}")

    # In

    def unary(self, data: bytes) -> Request:
        """A serialised ScoreTransactionRequest. Raises InvalidRequest."""
        try:
            message = scoring.ScoreTransactionRequest.FromString(data)
        except DecodeError as error:
            raise InvalidRequest("request", "is not a serialised trine.scoring.v1.ScoreTransactionRequest") from error
        if not message.HasField("transaction"):
            raise InvalidRequest("transaction", "is missing")
        return self.request(message.transaction)

    def batch(self, data: bytes) -> list[Request | InvalidRequest]:
        """A serialised ScoreTransactionsRequest: per transaction the request, or what is wrong with it.

        Raises InvalidRequest where the message as a whole cannot be taken.
        """
        try:
            message = scoring.ScoreTransactionsRequest.FromString(data)
        except DecodeError as error:
            raise InvalidRequest("request", "is not a serialised trine.scoring.v1.ScoreTransactionsRequest") from error
        if len(message.transactions) > MAX_TRANSACTIONS:
            raise InvalidRequest(
                "transactions", f"has {len(message.transactions)} items; must have at most {MAX_TRANSACTIONS}"
            )
        found: list[Request | InvalidRequest] = []
        for transaction in message.transactions:
            try:
                found.append(self.request(transaction))
            except InvalidRequest as error:
                found.append(error)
        return found

    def request(self, t: scoring.Transaction) -> Request:
        """One transaction. Raises InvalidRequest that names the field."""
        id_, customer, terminal = t.transaction_id, t.customer_id, t.terminal_id
        amount, currency, at = t.amount_minor, t.currency, t.event_time
        time_us = at.seconds * 1_000_000 + at.nanos // 1_000
        if not (
            _id(id_) and _id(customer) and _id(terminal) and 0 <= amount <= MAX_MINOR and currency in CURRENCIES
            # Presence is asked for only where it matters: a field that is not 0 is there.
            and (amount or t.HasField("amount_minor")) and 0 < time_us <= MAX_TIME_US and 0 <= at.nanos < 1_000_000_000
        ):  # fmt: skip
            raise self._problem(t, time_us)
        # The bound only grows, so the clock is read only by what an earlier reading does not let pass.
        if time_us > self._latest_us:
            self._check_future(time_us, id_)
        if self._live:
            self._check_live(time_us, id_)
        message = events.Transaction()
        message.transaction_id, message.customer_id, message.terminal_id = id_, customer, terminal
        message.event_time_us, message.amount, message.currency = time_us, amount, currency
        event = message.SerializeToString()
        keys = dict.fromkeys(self._customers, customer)
        for name in self._terminals:
            keys[name] = terminal
        features = FeatureRequest(id_, time_us, keys, {"amount": amount}, xxh3_128_digest(event))
        return Request(features, event, customer.encode(), shard_of(customer, self._shards))

    def example(self) -> Request:
        """A valid request, for warming up."""
        live, self._live = self._live, False
        message = scoring.Transaction(
            transaction_id="warm-up", customer_id="warm-up", terminal_id="warm-up", amount_minor=1, currency="EUR"
        )
        message.event_time.seconds = 1
        try:
            return self.unary(scoring.ScoreTransactionRequest(transaction=message).SerializeToString())
        finally:
            self._live = live

    def _problem(self, t: scoring.Transaction, time_us: int) -> InvalidRequest:
        ids = {name: getattr(t, name) for name in ("transaction_id", *_ENTITY_FIELDS)}
        problem = first_problem(ids)
        if problem is None:
            if not t.HasField("event_time"):
                return InvalidRequest("event_time", "is missing; must be a time in UTC", t.transaction_id)
            if not 0 <= t.event_time.nanos < 1_000_000_000:
                return InvalidRequest(
                    "event_time", f"has {t.event_time.nanos} nanos; must have 0 to 999999999", t.transaction_id
                )
            amount = t.amount_minor if t.HasField("amount_minor") else None
            problem = first_problem({"event_time_us": time_us, "amount": amount, "currency": t.currency})
        if problem is None:
            return InvalidRequest("transaction", "cannot be used")
        public = {"event_time_us": "event_time", "amount": "amount_minor"}
        return InvalidRequest(public.get(problem.field, problem.field), problem.detail, t.transaction_id)

    def _check_future(self, time_us: int, event_id: str) -> None:
        """As the worker judges by the event's record: no event may be further ahead than the plan's step."""
        now_us = time.time_ns() // 1_000
        self._latest_us = now_us + self._step_us
        if time_us > self._latest_us:
            raise _too_far_ahead(time_us - now_us, self._step_us, event_id)

    def _check_live(self, time_us: int, event_id: str) -> None:
        now_us = time.time_ns() // 1_000
        if time_us > now_us + self._future_us:
            raise _too_far_ahead(time_us - now_us, self._future_us, event_id)
        if time_us < now_us - self._past_us:
            raise InvalidRequest(
                "event_time",
                f"is {(now_us - time_us) / 1e6:.0f} s ago;"
                f" must be at most {self._past_us // 1_000_000} s before the gateway's clock",
                event_id,
            )

    # Out. Field by field: a constructor with keywords costs twice as much.

    def response(self, request: Request, d: Decision) -> bytes:
        """The serialised ScoreTransactionResponse, without features."""
        m = scoring.ScoreTransactionResponse()
        m.release = d.release
        m.transaction_id = request.features.event_id
        m.verdict, m.score, m.source = d.verdict, d.score, d.source  # type: ignore[assignment]  # numbers of the enums
        m.feature_lag_ms, m.fallback_reason = d.lag_ms, d.reason
        for v in d.inputs:
            if not v.known and not v.lost and v.entity not in m.new_entities:
                m.new_entities.append(v.entity)
        if d.rules:
            m.rules[:] = d.rules
        if d.batch is not None:
            m.batch_run, m.batch_stale = d.batch.run, d.batch.stale
        _set_latency(m.latency, d)
        return m.SerializeToString()

    def record(self, request: Request, d: Decision) -> bytes:
        """The serialised DecisionRecord; its record_us is what was known before it was written itself."""
        m = events.DecisionRecord()
        m.release = d.release
        m.decision_id = request.features.event_id
        m.verdict, m.score, m.source = d.verdict, d.score, d.source  # type: ignore[assignment]  # numbers of the enums
        m.decided_at_us, m.feature_lag_ms, m.fallback_reason = d.decided_at_us, d.lag_ms, d.reason
        if d.rules:
            m.rules[:] = d.rules
        if d.batch is not None:
            m.batch_score, m.batch_run = d.batch.score, d.batch.run
        _set_latency(m.latency, d)
        parts = [m.SerializeToString(), _RECORD_EVENT, varint(len(request.event)), request.event]
        for v in d.inputs:
            constant = _view_constant(v.view, v.entity, v.version, v.topic, v.topic_id, v.shard)
            changing = events.ViewInput()
            changing.key, changing.offset, changing.known, changing.lost = v.key, v.offset, v.known, v.lost
            if v.tail_ids:
                changing.tail_ids.extend(v.tail_ids)
            rest = changing.SerializeToString()
            parts += (_RECORD_INPUT, varint(len(constant) + len(rest)), constant, rest)
        if d.vector is not None:
            vector = d.vector.tobytes()
            parts += (_RECORD_VECTOR, varint(len(vector)), vector)
        return b"".join(parts)

    def explained(self, response: bytes, vector: NDArray[np.float32] | None) -> bytes:
        """The response with the features that were read; nothing is added where they could not be read."""
        if vector is None:
            return response
        names = self.features.get(scoring.ScoreTransactionResponse.FromString(response).release, ())
        if len(names) != len(vector):  # answered by a release that is not here any more
            return response
        values = {n: v for n, v in zip(names, vector.tolist(), strict=True) if v == v}
        return response + scoring.ScoreTransactionResponse(features=values).SerializeToString()


REPEATED = scoring.ScoreTransactionResponse(repeated_request=True).SerializeToString()
"""Appended to a stored response that is given again."""


def _too_far_ahead(ahead_us: int, limit_us: int, event_id: str) -> InvalidRequest:
    return InvalidRequest(
        "event_time",
        f"is {ahead_us / 1e6:.0f} s in the future; must be at most {limit_us // 1_000_000} s after the gateway's clock",
        event_id,
    )


def _set_latency(latency: scoring.StageLatency | events.StageLatency, d: Decision) -> None:
    latency.queue_us, latency.features_us, latency.model_us = d.queue_us, d.features_us, d.model_us
    latency.record_us, latency.total_us = d.record_us, d.total_us


@lru_cache(maxsize=1 << 14)
def _view_constant(view: str, entity: str, version: str, topic: str, topic_id: str, shard: int) -> bytes:
    return events.ViewInput(
        view=view, entity=entity, state_version=version, topic=topic, topic_id=topic_id, partition=shard
    ).SerializeToString()
