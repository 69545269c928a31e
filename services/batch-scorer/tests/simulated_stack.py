"""Gateway, worker and logs in one slow, plain simulation: what replay must agree with. Shares no code with the kernel.

Everything is a Python loop over events: states keep lists, windows are counted one event at a time. It writes what the
real services would: the logs of events and of re-keyed rows, and decision records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
from batch_scorer.archive import EntityTopic, LogExtent, LoggedEvents, LoggedRows
from feature_store.definitions import (
    Count,
    Entity,
    FeaturePlan,
    FeatureView,
    LabelSource,
    Mean,
    RequestFeature,
    Share,
    Source,
)
from feature_store.history import EntityKeys
from feature_store.ids import id64
from feature_store.sharding import shard_of
from model_release import Release
from model_release.policy import fallback_score, verdict
from trine.events.v1.events_pb2 import DecisionRecord, ScoreSource, Transaction, ViewInput

HOUR = 3_600_000_000
DAY = 24 * HOUR
SHARDS = 2
LATENESS, MAX_STEP = 6 * HOUR, 40 * HOUR
FIRST_US = 1_500_000_000_000_000 // HOUR * HOUR
RECORDED_US = FIRST_US + 400 * DAY
"""When everything is written to the log: a replay of old data."""

_TRANSACTIONS = Source(
    "transactions", "trine.events.v1.Transaction", "trine.transactions", "customer_id", "transaction_id",
    "event_time_us", ("amount",),
)  # fmt: skip
_REPORTS = LabelSource(
    "fraud_reports", "trine.events.v1.FraudReport", "trine.fraud-reports", "transaction_id", "transaction_id",
    "event_time_us", "reported_at_us", "fraud", _TRANSACTIONS,
)  # fmt: skip
_CUSTOMER, _TERMINAL = Entity("customer", "customer_id"), Entity("terminal", "terminal_id")
_LATE = timedelta(microseconds=LATENESS)


def _hours(*counts: int) -> tuple[timedelta, ...]:
    return tuple(timedelta(hours=n) for n in counts)


PLAN = FeaturePlan(
    model="fraud",
    source=_TRANSACTIONS,
    request_features=(RequestFeature("amount", "field", "amount"), RequestFeature("is_night", "night")),
    views=(
        FeatureView("customer", _CUSTOMER, _TRANSACTIONS, (Count(), Mean("amount")), _hours(3, 30), lateness=_LATE),
        # Delayed by a day: read from the state alone. The second one reads the tail, of events not re-keyed yet.
        FeatureView("terminal", _TERMINAL, _TRANSACTIONS, (Count(), Share(_REPORTS, "fraud")), _hours(4, 40),
                    delay=timedelta(days=1), lateness=_LATE),
        FeatureView("busy", _TERMINAL, _TRANSACTIONS, (Count(),), _hours(5), delay=timedelta(hours=1), lateness=_LATE),
    ),
    max_step=timedelta(microseconds=MAX_STEP),
)  # fmt: skip


Row = tuple[str, Transaction, int, bool]
"""Source, event (of a label: what it labels), known at, value."""


@dataclass
class EntityState:
    """One (view, key): absorbed events id -> (time, amount), labels, and the tail."""

    absorbed: dict[int, tuple[int, int]] = field(default_factory=dict)
    labels: set[tuple[int, int, bool]] = field(default_factory=set)
    tail: dict[int, tuple[int, int]] = field(default_factory=dict)
    written: bool = False


@dataclass
class SimulatedStack:
    """Call `request`, `produce`, `report`, `rekey`, `absorb`; then hand it to replay as its archive."""

    release: Release
    log: dict[int, list[Transaction]] = field(default_factory=lambda: {p: [] for p in range(SHARDS)})
    by_terminal: dict[int, list[tuple[int, list[Row]]]] = field(default_factory=lambda: {p: [] for p in range(SHARDS)})
    records: list[DecisionRecord] = field(default_factory=list)
    version: str = "1"

    def __post_init__(self) -> None:
        self._states: dict[tuple[str, str], EntityState] = {}
        self._absorbed = {("customer", p): 0 for p in range(SHARDS)} | {("terminal", p): 0 for p in range(SHARDS)}
        self._rekeyed = dict.fromkeys(range(SHARDS), 0)
        self._clocks: dict[tuple[str, int], int] = {}
        self._next_terminal_offset = dict.fromkeys(range(SHARDS), 0)
        self._reports: list[tuple[Transaction, int, bool]] = []
        self._terminal_read = dict.fromkeys(range(SHARDS), 0)

    # -- what happens

    def start_from(self, events: list[Transaction], reports: list[tuple[Transaction, int, bool]]) -> None:
        """A state rebuilt from a history, as version 2."""
        self.version = "2"
        for t in events:
            for view in PLAN.views:
                state = self._state(view, _key(view, t))
                state.written = True
                state.absorbed[id64(t.transaction_id)] = (t.event_time_us, t.amount)
        for t, known_us, fraud in reports:
            for view in PLAN.views_of("terminal"):
                self._state(view, t.terminal_id).labels.add((id64(t.transaction_id), known_us, fraud))
        for (name, _), state in self._states.items():
            _trim(next(v for v in PLAN.views if v.name == name), state.absorbed)

    def produce(self, t: Transaction) -> None:
        self.log[shard_of(t.customer_id, SHARDS)].append(t)

    def report(self, t: Transaction, known_us: int, fraud: bool) -> None:
        self._reports.append((t, known_us, fraud))

    def rekey(self, partition: int, count: int) -> None:
        """The worker's first stage: one message per terminal shard, of `count` events and all reports so far."""
        events = self._admitted("rekey", partition, self._rekeyed[partition], count)
        self._rekeyed[partition] = min(self._rekeyed[partition] + count, len(self.log[partition]))
        rows: list[Row] = [("transactions", t, 0, False) for t in events]
        rows += [("fraud_reports", t, known, fraud) for t, known, fraud in self._reports]
        self._reports = []
        for shard in range(SHARDS):
            here = [r for r in rows if shard_of(r[1].terminal_id, SHARDS) == shard]
            if here:
                self.by_terminal[shard].append((self._next_terminal_offset[shard], here))
                # The end of each Kafka transaction takes an offset too.
                self._next_terminal_offset[shard] += 2

    def absorb(self, entity: str, shard: int, count: int) -> None:
        """The worker's second stage takes the next `count` messages of a shard's log."""
        at = self._absorbed[entity, shard]
        if entity == "customer":
            events = self._admitted("state", shard, at, count)
            taken = self.log[shard][at : at + count]
            self._absorbed[entity, shard] = at + len(taken)
            for t in taken:
                self._forget("customer", t)
            for t in events:
                self._take("customer", t)
            return
        first = self._terminal_read[shard]
        messages = self.by_terminal[shard][first : first + count]
        self._terminal_read[shard] += len(messages)
        for offset, rows in messages:
            self._absorbed[entity, shard] = offset + 1
            for source, t, known_us, fraud in rows:
                if source == "transactions":
                    self._forget("terminal", t)
                    self._take("terminal", t)
                else:
                    for view in PLAN.views_of("terminal"):
                        state = self._state(view, t.terminal_id)
                        state.written = True
                        state.labels.add((id64(t.transaction_id), known_us, fraud))

    def request(self, t: Transaction, recorded_first: bool, by_rules: bool = False, lost: str = "") -> None:
        """The gateway decides: reads, appends to the tails, scores, records. `lost`: a view without state."""
        shard = shard_of(t.customer_id, SHARDS)
        if recorded_first:
            self.produce(t)
        vector = [float(t.amount), float(t.event_time_us % DAY // HOUR <= 6)]
        usable = [True, True]
        inputs = []
        for view in PLAN.views:
            key = _key(view, t)
            state = self._state(view, key)
            at = shard_of(key, SHARDS)
            if view.name != "terminal":
                state.tail.setdefault(id64(t.transaction_id), (t.event_time_us, t.amount))
            is_lost = view.name == lost
            values = [0.0] * len(view.features) if is_lost else _features(view, state, t)
            vector += values
            usable += [not is_lost] * len(values)
            inputs.append(
                ViewInput(
                    view=view.name, entity=view.entity.name, key=key, state_version=self.version, topic=view.topic,
                    topic_id="same", partition=at, offset=self._absorbed[view.entity.name, at],
                    tail_ids=list(state.tail), known=state.written or len(state.tail) > 1, lost=is_lost,
                )
            )  # fmt: skip
        if not recorded_first:
            self.produce(t)
        assert shard_of(t.customer_id, SHARDS) == shard
        self._decide(t, np.array(vector, dtype=np.float32), np.array(usable), inputs, by_rules or bool(lost))

    def request_without_features(self, t: Transaction) -> None:
        """Redis is away: rules on what the request itself says; nothing was read, nothing is appended."""
        self.produce(t)
        vector = np.full(len(PLAN.features), np.nan, dtype=np.float32)
        vector[:2] = t.amount, t.event_time_us % DAY // HOUR <= 6
        usable = np.arange(len(vector)) < 2
        self._decide(t, vector, usable, [], True)
        del self.records[-1].vector[:]

    def _decide(
        self, t: Transaction, vector: np.ndarray, usable: np.ndarray, inputs: list[ViewInput], by_rules: bool
    ) -> None:
        manifest = self.release.manifest
        if by_rules:
            answer = fallback_score(vector, usable, manifest.policy, manifest.features)
            score, rules, source = answer.score, answer.rules, ScoreSource.SCORE_SOURCE_RULES
            found = answer.verdict(manifest.thresholds)
        else:
            score, rules, source = plain_score(vector), (), ScoreSource.SCORE_SOURCE_MODEL
            found = verdict(score, manifest.thresholds)
        self.records.append(
            DecisionRecord(
                decision_id=t.transaction_id, transaction=t, verdict=int(found),  # type: ignore[arg-type]
                score=score, source=source, release=self.release.id, vector=vector.tolist(), inputs=inputs,
                rules=rules, feature_lag_ms=len(self.records), fallback_reason="model_down" if by_rules else "",
            )
        )  # fmt: skip

    # -- the archive

    def events(self, plan: FeaturePlan) -> LoggedEvents:
        rows = [(p, o, t) for p in sorted(self.log) for o, t in enumerate(self.log[p])]
        message = [t for _, _, t in rows]
        return LoggedEvents(
            extent=LogExtent("same", {p: len(events) for p, events in self.log.items()}),
            partition=_ints(p for p, _, _ in rows),
            offset=_ints(o for _, o, _ in rows),
            recorded_us=np.full(len(rows), RECORDED_US),
            time_us=_ints(t.event_time_us for t in message),
            id=_ints(id64(t.transaction_id) for t in message),
            fields={"amount": _ints(t.amount for t in message)},
            entities={
                "customer": _coded([t.customer_id for t in message]),
                "terminal": _coded([t.terminal_id for t in message]),
            },
            message_at=lambda row: message[row],
        )

    def entity_topic(self, plan: FeaturePlan, entity: str) -> EntityTopic:
        found = {}
        for source in ("transactions", "fraud_reports"):
            rows = [
                (offset, *row[1:])
                for messages in self.by_terminal.values()
                for offset, of in messages
                for row in of
                if row[0] == source
            ]
            events = [r[1] for r in rows]
            label = source == "fraud_reports"
            found[source] = LoggedRows(
                keys=_coded([t.terminal_id for t in events]),
                offset=_ints(r[0] for r in rows),
                time_us=_ints(t.event_time_us for t in events),
                id=_ints(id64(t.transaction_id) for t in events),
                fields={"value": _ints(r[3] for r in rows)} if label else {"amount": _ints(t.amount for t in events)},
                known_at_us=_ints(r[2] for r in rows) if label else None,
            )
        return EntityTopic(LogExtent("same", dict(self._next_terminal_offset)), found)

    def decisions(self) -> Iterator[DecisionRecord]:
        yield from self.records

    # -- inside

    def _admitted(self, stage: str, partition: int, start: int, count: int) -> list[Transaction]:
        """Of a stretch of a log, in order, what is neither late nor in the future; moves the stage's clock."""
        out = []
        for t in self.log[partition][start : start + count]:
            if t.event_time_us > RECORDED_US + MAX_STEP:
                continue
            clock = self._clocks.setdefault((stage, partition), t.event_time_us)
            if t.event_time_us > clock + MAX_STEP:
                self._clocks[stage, partition] = clock + MAX_STEP
            elif t.event_time_us >= clock - LATENESS:
                self._clocks[stage, partition] = max(clock, t.event_time_us)
                out.append(t)
        return out

    def _take(self, entity: str, t: Transaction) -> None:
        for view in PLAN.views_of(entity):
            state = self._state(view, _key(view, t))
            state.written = True
            state.absorbed.setdefault(id64(t.transaction_id), (t.event_time_us, t.amount))
            _trim(view, state.absorbed)

    def _forget(self, entity: str, t: Transaction) -> None:
        for view in PLAN.views_of(entity):
            self._state(view, _key(view, t)).tail.pop(id64(t.transaction_id), None)

    def _state(self, view: FeatureView, key: str) -> EntityState:
        return self._states.setdefault((view.name, key), EntityState())


def plain_score(vector: np.ndarray) -> float:
    """Stands for a model: any function of all entries that notices each of them."""
    weights = np.arange(1, len(vector) + 1, dtype=np.float64)
    return float(np.float32((vector.astype(np.float64) @ weights) % 997 / 997))


def _features(view: FeatureView, state: EntityState, t: Transaction) -> list[float]:
    events = {**state.tail, **state.absorbed}
    out: list[float] = []
    for window in view.windows_us:
        end = t.event_time_us - view.delay_us
        inside = [(i, amount) for i, (at, amount) in events.items() if end - window < at <= end]
        out.append(float(len(inside)))
        if view.name == "customer":
            out.append(sum(a for _, a in inside) / len(inside) if inside else 0.0)
        elif view.name == "terminal":
            known = [_known(state, i, t.event_time_us) for i, _ in inside]
            out.append(sum(known) / len(inside) if inside else 0.0)
    return out


def _known(state: EntityState, id_: int, at_us: int) -> bool:
    says = [(known, fraud) for i, known, fraud in state.labels if i == id_ and known <= at_us]
    return max(says)[1] if says else False


def _trim(view: FeatureView, events: dict[int, tuple[int, int]]) -> None:
    newest = max((at for at, _ in events.values()), default=0)
    for i in [i for i, (at, _) in events.items() if at <= newest - view.retention_us]:
        del events[i]


def _key(view: FeatureView, t: Transaction) -> str:
    return str(getattr(t, view.entity.key))


def _ints(values: object) -> np.ndarray:
    return np.array(list(values), dtype=np.int64)  # type: ignore[call-overload]


def _coded(texts: list[str]) -> EntityKeys:
    keys = sorted(set(texts))
    return EntityKeys(_ints(keys.index(t) for t in texts), keys)
