"""From what the read script gives to vectors and what they were made of. No I/O; `online` does that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.assemble import request_matrix
from feature_store.codec import StateCodec, StateCorrupt
from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.kernel import LAST_ID, Int64s, Points, Queries, view_features, window_sums
from feature_store.online_types import BatchRead, FeatureRequest, Outcome, ViewRead
from feature_store.state import NewEvents, union
from feature_store.updates import needs_tail

_OUTCOMES = tuple(Outcome)

Reply = Sequence[Sequence[Any]]  # Any: integers, bytes, None and lists of them, as online_scripts.READ gives them


class Absorbed(NamedTuple):
    """An entry of a tail that the state holds too: index of the view, the entity's key, the event's id."""

    view: int
    key: str
    id: int


class ReadAssembler:
    """`shard_of_key(view index, key, version)`: the shard an entity lies in."""

    def __init__(self, plan: FeaturePlan, shard_of_key: Callable[[int, str, str], int]) -> None:
        self._plan, self._shard_of_key = plan, shard_of_key
        self.codecs = [StateCodec(v) for v in plan.views]
        self.rows = [Struct(f"<{1 + len(v.columns)}q") for v in plan.views]
        self.tails = [needs_tail(v) for v in plan.views]
        self._column_of_view: list[slice] = []
        self._place_in_row: list[int] = []
        at, place = len(plan.request_features), 2
        for view, tail in zip(plan.views, self.tails, strict=True):
            self._column_of_view.append(slice(at, at + len(view.features)))
            self._place_in_row.append(place)
            at += len(view.features)
            place += 3 if tail else 2

    def assembled(
        self, requests: Sequence[FeatureRequest], ids: Sequence[int], metas: Reply, rows: Reply, version: str
    ) -> tuple[BatchRead, list[Absorbed]]:
        """What a call of the read script found for `requests`, and what tails need no longer hold."""
        n, width = len(requests), len(self._plan.features)
        outcomes = [_OUTCOMES[row[0]] for row in rows]
        new = [i for i, outcome in enumerate(outcomes) if outcome is Outcome.NEW]
        inputs: list[list[ViewRead]] = [[] for _ in range(n)]
        vectors = np.zeros((n, width), dtype=np.float32)
        feature_usable = np.zeros((n, width), dtype=np.bool_)
        lag_ms = np.zeros(n, dtype=np.int64)
        absorbed: list[Absorbed] = []
        damaged: list[str] = []
        if new:
            every = len(new) == n
            chosen = requests if every else [requests[i] for i in new]
            chosen_ids = ids if every else [ids[i] for i in new]
            chosen_rows = rows if every else [rows[i] for i in new]
            reads, values, usable, lag = self._computed(
                chosen, chosen_ids, metas, chosen_rows, version, absorbed, damaged
            )
            at = slice(None) if every else new
            vectors[at], feature_usable[at], lag_ms[at] = values, usable, lag
            for i, read in zip(new, zip(*reads, strict=True), strict=True):
                inputs[i] += read
        read_ = BatchRead(
            outcomes=outcomes,
            replies=[row[1] if row[0] == Outcome.REPEATED else None for row in rows],
            vectors=vectors,
            feature_usable=feature_usable,
            usable=np.asarray(feature_usable.all(axis=1)),
            inputs=inputs,
            lag_ms=lag_ms,
            clock_us=[int(row[1]) if row[0] >= Outcome.LATE else -1 for row in rows],
            damaged=damaged,
        )
        return read_, absorbed

    def _computed(
        self,
        requests: Sequence[FeatureRequest],
        ids: Sequence[int],
        metas: Reply,
        rows: Reply,
        version: str,
        absorbed: list[Absorbed],
        damaged: list[str],
    ) -> tuple[list[list[ViewRead]], NDArray[np.float64], NDArray[np.bool_], Int64s]:
        """For requests that are NEW: reads by view and request, float64[n, features], usable bool[n, features], lag.

        Adds to `absorbed` and `damaged`.
        """
        plan = self._plan
        n = len(requests)
        time_us, fields = columns_of(plan, requests)
        values = np.zeros((n, len(plan.features)), dtype=np.float64)
        values[:, : len(plan.request_features)] = request_matrix(plan, time_us, fields)
        usable = np.ones(values.shape, dtype=np.bool_)
        shards = [_shard_read(meta) for meta in metas]
        now_us = time.time_ns() // 1_000
        lag_of = np.array([0 if s.lost else max(0, now_us - s.progress_us) // 1_000 for s in shards], dtype=np.int64)
        lag = np.zeros(n, dtype=np.int64)
        own_id = np.array(ids, dtype=np.int64)
        # What is there by now came before: an event at the same microsecond counts whatever its id (docs/adr/0008).
        queries = Queries(np.arange(n, dtype=np.int64), time_us, np.full(n, LAST_ID))
        reads = []
        for v, (view, codec, at) in enumerate(zip(plan.views, self.codecs, self._place_in_row, strict=True)):
            meta_at = [row[at] - 1 for row in rows]
            points, broken = sound(codec, [row[at + 1] for row in rows])
            for i, what in broken.items():
                damaged.append(f"{requests[i].keys[view.entity.name]}: {what}")
            tail_ids: list[tuple[int, ...]] = [()] * n
            if self.tails[v]:
                tails = [row[at + 2] for row in rows]
                tail = tail_events(view, self.rows[v], tails)
                tail_ids = _by_tail(tail, tails)
                both = union(view, points, tail, None)
                points = both.points
                if len(both.duplicates) or len(both.conflicts):
                    absorbed += _absorbed(v, view, requests, tail, (both.duplicates, both.conflicts))
            sums = window_sums(points, queries, view.windows_us, view.delay_us)
            columns = self._column_of_view[v]
            values[:, columns] = view_features(view, sums)
            np.maximum(lag, lag_of[meta_at], out=lag)
            gone = [i for i, m in enumerate(meta_at) if shards[m].lost or i in broken]
            if gone:
                values[gone, columns] = 0
                usable[gone, columns] = False
            others = np.bincount(points.group, minlength=n) - np.bincount(
                points.group[points.id == own_id[points.group]], minlength=n
            )
            name, entity, topic = view.name, view.entity.name, view.topic
            view_reads = []
            numbers: dict[int, int] = {}  # of the shards, by place in `metas`
            known = (others > 0).tolist()
            for i, (r, m, seen) in enumerate(zip(requests, meta_at, tail_ids, strict=True)):
                key = r.keys[entity]
                if (number := numbers.get(m)) is None:
                    number = numbers[m] = self._shard_of_key(v, key, version)
                offset, _, topic_id, lost = shards[m]
                lost = lost or i in broken
                view_reads.append(
                    ViewRead(name, entity, key, version, topic, topic_id, number, offset, seen, known[i], lost)
                )
            reads.append(view_reads)
        return reads, values, usable, lag


def sound(codec: StateCodec, states: Sequence[bytes | None]) -> tuple[Points, dict[int, str]]:
    """The states decoded; one that is damaged counts as none, and is told of by its index."""
    try:
        return codec.decode(states), {}
    except StateCorrupt:
        kept, broken = list(states), {}
        for i, state in enumerate(states):
            try:
                codec.decode([state])
            except StateCorrupt as error:
                kept[i], broken[i] = None, str(error)
        return codec.decode(kept), broken


def _absorbed(
    v: int,
    view: FeatureView,
    requests: Sequence[FeatureRequest],
    tail: NewEvents,
    rows: Sequence[NDArray[np.intp]],
) -> list[Absorbed]:
    """Of rows of the tail: the event reached the worker before the tail."""
    entity = view.entity.name
    return [
        Absorbed(v, requests[int(tail.group[row])].keys[entity], int(tail.id[row]))
        for row in np.concatenate(rows).tolist()
    ]


class _ShardRead(NamedTuple):
    offset: int
    progress_us: int
    topic_id: str
    lost: bool


def _shard_read(meta: Sequence[bytes | None]) -> _ShardRead:
    offset, _, progress_us, topic_id = meta
    lost = offset is None or progress_us is None
    return _ShardRead(int(offset or 0), int(progress_us or 0), (topic_id or b"").decode(), lost)


def columns_of(plan: FeaturePlan, requests: Sequence[FeatureRequest]) -> tuple[Int64s, dict[str, Int64s]]:
    time_us = np.fromiter((r.time_us for r in requests), dtype=np.int64, count=len(requests))
    fields = {
        name: np.fromiter((r.fields[name] for r in requests), dtype=np.int64, count=len(requests))
        for name in plan.source.fields
    }
    return time_us, fields


def tail_events(view: FeatureView, row: Struct, tails: Sequence[Sequence[bytes]]) -> NewEvents:
    """All entries of the tails (field, value, field, value, ... each) as events, group = index of the tail."""
    if len(tails) == 1:
        group = np.zeros(len(tails[0]) // 2, dtype=np.int64)
        flat: Sequence[bytes] = tails[0]
    else:
        group = np.repeat(np.arange(len(tails), dtype=np.int64), [len(t) // 2 for t in tails])
        flat = list(chain.from_iterable(tails))
    ids = np.frombuffer(b"".join(flat[::2]), dtype="<i8")
    rows = np.frombuffer(b"".join(flat[1::2]), dtype="<i8").reshape(-1, row.size // 8)
    columns = {name: rows[:, 1 + c] for c, name in enumerate(view.columns)}
    return NewEvents(group, rows[:, 0], ids, columns)


def _by_tail(tail: NewEvents, tails: Sequence[Sequence[bytes]]) -> list[tuple[int, ...]]:
    """Ids of each tail's events."""
    ids = tail.id.tolist()
    ends = accumulate(len(t) // 2 for t in tails)
    return [tuple(ids[end - len(t) // 2 : end]) for t, end in zip(tails, ends, strict=True)]
