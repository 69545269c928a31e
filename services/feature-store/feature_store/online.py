"""The gateway's side of the feature state: for many requests at once, one atomic script in one round trip.

Per request the script looks into the ledger of requests, judges the event's time against its shard's clock, appends
the event to its entities' tails and reads states and tails. So the next request, on any process, sees this one; the
worker's absorption later moves the event from the tail into the state, both under the same id.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain
from struct import Struct
from typing import Any, NamedTuple, Self, cast

import hiredis
import numpy as np
from numpy.typing import NDArray

from feature_store import keys as names
from feature_store.assemble import request_matrix, view_matrix
from feature_store.codec import StateCodec
from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.ids import id64
from feature_store.kernel import LAST_ID, Int64s, Queries, view_features, window_sums
from feature_store.online_scripts import READ, TIDY
from feature_store.online_types import (
    BatchRead,
    EntityRead,
    FeatureRequest,
    Outcome,
    ViewRead,
)
from feature_store.redis_link import Command, LinkDown, RedisLink
from feature_store.sharding import shard_of
from feature_store.state import NewEvents, union
from feature_store.updates import needs_tail, tail_field

__all__ = [
    "BatchRead",
    "EntityRead",
    "FeatureRequest",
    "OnlineFeatures",
    "Outcome",
    "StoreMisconfigured",
    "StoreUnavailable",
    "ViewRead",
]

_OUTCOMES = tuple(Outcome)
_UNTIDY_LIMIT = 4_096


class StoreUnavailable(Exception):
    """Redis did not answer in time; nothing is known of what it did."""


class StoreMisconfigured(Exception):
    """Redis runs with a setting that loses state; the message says which and what would be right."""


class OnlineFeatures:
    """Reads features and appends events, for one process's event loop."""

    def __init__(
        self,
        link: RedisLink,
        plan: FeaturePlan,
        shards: int,
        lease_ms: int = 1_000,
        ledger_ttl_ms: int = 3_600_000,
        tail_ttl_ms: int = 7 * 86_400_000,
    ) -> None:
        self._link = link
        self._plan = plan
        self._shards = shards
        self._ledger_ttl_ms = ledger_ttl_ms
        self._codecs = [StateCodec(v) for v in plan.views]
        self._rows = [Struct(f"<{1 + len(v.columns)}q") for v in plan.views]
        self._tails = [needs_tail(v) for v in plan.views]
        self._version = ""
        self._version_read = 0.0
        self._read_sha = self._tidy_sha = ""
        # Tail entries that the state holds too: (tail, field) -> meta.
        self._untidy: dict[tuple[bytes, bytes], bytes] = {}
        self._head: list[Any] = [
            names.FIRST_VERSION,
            lease_ms,
            plan.lateness_us,
            plan.max_step_us,
            ledger_ttl_ms,
            tail_ttl_ms,
            len(plan.views),
        ]
        for view, tail in zip(plan.views, self._tails, strict=True):
            self._head += [int(tail), int(not view.rekeyed)]
        self._column_of_view: list[slice] = []
        self._place_in_row: list[int] = []
        at, place = len(plan.request_features), 2
        for view, tail in zip(plan.views, self._tails, strict=True):
            self._column_of_view.append(slice(at, at + len(view.features)))
            self._place_in_row.append(place)
            at += len(view.features)
            place += 3 if tail else 2
        # Entities come back: their names in Redis are made once.
        self._places = lru_cache(maxsize=1 << 17)(self._place)

    @classmethod
    async def connect(cls, url: str, plan: FeaturePlan, shards: int, timeout_s: float = 0.25, **settings: Any) -> Self:
        """A reader on the Redis at `url`; every call gives up after `timeout_s`.

        Raises StoreMisconfigured where Redis may evict keys, StoreUnavailable where it does not answer.
        """
        self = cls(RedisLink(url, timeout_s), plan, shards, **settings)
        try:
            await self.check()
        except BaseException:
            await self.close()
            raise
        return self

    async def check(self) -> None:
        """Raises StoreMisconfigured or StoreUnavailable where Redis cannot serve; loads the scripts."""
        try:
            found = await self._link.call("CONFIG", "GET", "maxmemory-policy")
            policy = found[1].decode() if found else ""
            if policy != "noeviction":
                raise StoreMisconfigured(
                    f"Redis has maxmemory-policy {policy!r}, which drops feature state when memory is short;"
                    " set it to noeviction"
                )
            await self._load()
        except (LinkDown, hiredis.ReplyError) as error:
            raise StoreUnavailable(str(error)) from error

    async def close(self) -> None:
        await self._link.close()

    async def _load(self) -> None:
        self._read_sha = await self._link.call("SCRIPT", "LOAD", READ)
        self._tidy_sha = await self._link.call("SCRIPT", "LOAD", TIDY)

    async def _current_version(self) -> str:
        """The served state version, read at most once a second."""
        now = time.monotonic()
        if not self._version or now - self._version_read > 1.0:
            self._version_read = now
            found = cast(bytes | None, await self._link.call("GET", names.VERSION_POINTER))
            self._version = (found or names.FIRST_VERSION.encode()).decode()
        return self._version

    def request_vectors(self, requests: Sequence[FeatureRequest]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors from the requests alone, when state cannot be read: float32[n, features], usable bool[features]."""
        vectors = np.zeros((len(requests), len(self._plan.features)), dtype=np.float32)
        n = len(self._plan.request_features)
        vectors[:, :n] = request_matrix(self._plan, *_columns(self._plan, requests))
        usable = np.zeros(len(self._plan.features), dtype=np.bool_)
        usable[:n] = True
        return vectors, usable

    async def read_and_append(self, requests: Sequence[FeatureRequest]) -> BatchRead:
        """Ledger, clock, tails and states of all requests in one atomic round trip; see BatchRead.

        Event ids must differ within one call. Raises StoreUnavailable; feature_store.codec.StateCorrupt.
        """
        ids = [id64(r.event_id) for r in requests]
        try:
            version = self._version or await self._current_version()
            while True:
                reply = await self._run_read(self._script_input(requests, ids, version))
                if reply[0] is None:
                    break
                # The served version is another one since it was last looked up; the script did nothing.
                version = self._version = reply[0].decode()
        except (LinkDown, hiredis.ReplyError) as error:
            raise StoreUnavailable(f"reading features: {error}") from error
        return self._assembled(requests, ids, reply[1], reply[2], version)

    async def _run_read(self, keys_and_args: list[Any]) -> list[Any]:
        try:
            return cast(list[Any], await self._link.call("EVALSHA", self._read_sha, *keys_and_args))
        except hiredis.ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            await self._load()
            return cast(list[Any], await self._link.call("EVALSHA", self._read_sha, *keys_and_args))

    def _place(self, v: int, key: str, version: str) -> tuple[int, list[bytes]]:
        """An entity's shard, and its keys in a view: meta, state and, where the view has one, tail."""
        view = self._plan.views[v]
        shard = shard_of(key, self._shards)
        where = (view.entity.name, shard, version)
        found = [names.meta(*where), names.state_prefix(*where, view.name) + key]
        if self._tails[v]:
            found.append(names.tail_prefix(*where, view.name) + key)
        return shard, [name.encode() for name in found]

    def _script_input(self, requests: Sequence[FeatureRequest], ids: Sequence[int], version: str) -> list[Any]:
        """Number of keys, keys, arguments: as online_scripts.READ wants them."""
        keys: list[str | bytes] = [names.VERSION_POINTER]
        args: list[Any] = [version, *self._head]
        views = [
            (v, view.entity.name, self._rows[v].pack if self._tails[v] else None, view.columns)
            for v, view in enumerate(self._plan.views)
        ]
        for r, id_ in zip(requests, ids, strict=True):
            keys.append(names.ledger(r.event_id))
            args += (r.fingerprint, r.time_us, tail_field(id_))
            for v, entity, pack, columns in views:
                keys += self._places(v, r.keys[entity], version)[1]
                if pack is not None:
                    args.append(pack(r.time_us, *[r.fields[c] for c in columns]))
        return [len(keys), *keys, *args]

    def _assembled(
        self,
        requests: Sequence[FeatureRequest],
        ids: Sequence[int],
        metas: Sequence[Sequence[Any]],
        rows: Sequence[Sequence[Any]],
        version: str,
    ) -> BatchRead:
        n, width = len(requests), len(self._plan.features)
        outcomes = [_OUTCOMES[row[0]] for row in rows]
        new = [i for i, outcome in enumerate(outcomes) if outcome is Outcome.NEW]
        inputs: list[list[ViewRead]] = [[] for _ in range(n)]
        vectors = np.zeros((n, width), dtype=np.float32)
        feature_usable = np.zeros((n, width), dtype=np.bool_)
        lag_ms = np.zeros(n, dtype=np.int64)
        if new:
            every = len(new) == n
            chosen = requests if every else [requests[i] for i in new]
            chosen_ids = ids if every else [ids[i] for i in new]
            chosen_rows = rows if every else [rows[i] for i in new]
            reads, values, usable, lag = self._computed(chosen, chosen_ids, metas, chosen_rows, version)
            at = slice(None) if every else new
            vectors[at], feature_usable[at], lag_ms[at] = values, usable, lag
            for i, read in zip(new, zip(*reads, strict=True), strict=True):
                inputs[i] += read
        return BatchRead(
            outcomes=outcomes,
            replies=[row[1] if row[0] == Outcome.REPEATED else None for row in rows],
            vectors=vectors,
            feature_usable=feature_usable,
            usable=np.asarray(feature_usable.all(axis=1)),
            inputs=inputs,
            lag_ms=lag_ms,
            clock_us=[int(row[1]) if row[0] >= Outcome.LATE else -1 for row in rows],
        )

    def _computed(
        self,
        requests: Sequence[FeatureRequest],
        ids: Sequence[int],
        metas: Sequence[Sequence[Any]],
        rows: Sequence[Sequence[Any]],
        version: str,
    ) -> tuple[list[list[ViewRead]], NDArray[np.float64], NDArray[np.bool_], Int64s]:
        """For requests that are NEW: reads by view and request, float64[n, features], usable bool[n, features], lag."""
        plan = self._plan
        n = len(requests)
        time_us, fields = _columns(plan, requests)
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
        for v, (view, codec, at) in enumerate(zip(plan.views, self._codecs, self._place_in_row, strict=True)):
            meta_at = [row[at] - 1 for row in rows]
            points = codec.decode([row[at + 1] for row in rows])
            tail_ids: list[tuple[int, ...]] = [()] * n
            if self._tails[v]:
                tails = [row[at + 2] for row in rows]
                tail = _tail_events(view, self._rows[v], tails)
                tail_ids = _by_tail(tail, tails)
                both = union(view, points, tail, None)
                points = both.points
                if len(both.duplicates) or len(both.conflicts):
                    self._note_absorbed(v, requests, tail, (both.duplicates, both.conflicts), version)
            sums = window_sums(points, queries, view.windows_us, view.delay_us)
            columns = self._column_of_view[v]
            values[:, columns] = view_features(view, sums)
            np.maximum(lag, lag_of[meta_at], out=lag)
            gone = [i for i, m in enumerate(meta_at) if shards[m].lost]
            if gone:
                values[gone, columns] = 0
                usable[gone, columns] = False
            others = np.bincount(points.group, minlength=n) - np.bincount(
                points.group[points.id == own_id[points.group]], minlength=n
            )
            name, entity, topic = view.name, view.entity.name, view.topic
            view_reads = []
            for r, m, seen, other in zip(requests, meta_at, tail_ids, others.tolist(), strict=True):
                key, shard = r.keys[entity], shards[m]
                number = self._places(v, key, version)[0]
                view_reads.append(
                    ViewRead(
                        name,
                        entity,
                        key,
                        version,
                        topic,
                        shard.topic_id,
                        number,
                        shard.offset,
                        seen,
                        other > 0,
                        shard.lost,
                    )
                )
            reads.append(view_reads)
        return reads, values, usable, lag

    def _note_absorbed(
        self,
        v: int,
        requests: Sequence[FeatureRequest],
        tail: NewEvents,
        rows: Sequence[NDArray[np.intp]],
        version: str,
    ) -> None:
        """Remember tail entries that the state already holds: the event reached the worker before the tail."""
        entity = self._plan.views[v].entity.name
        for row in np.concatenate(rows).tolist():
            if len(self._untidy) >= _UNTIDY_LIMIT:
                return  # the next read of the entity notes it again
            meta, _, name = self._places(v, requests[int(tail.group[row])].keys[entity], version)[1]
            self._untidy[name, tail_field(int(tail.id[row]))] = meta

    async def remember(self, replies: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Keep (event id, fingerprint, reply) for repeats of the request. Raises StoreUnavailable."""
        untidy, self._untidy = self._untidy, {}
        commands: list[Command] = [
            ("SET", names.ledger(event_id), fingerprint + b"D" + reply, "PX", self._ledger_ttl_ms)
            for event_id, fingerprint, reply in replies
        ]
        for (tail, entry), meta in untidy.items():
            commands.append(("EVALSHA", self._tidy_sha, 2, tail, meta, entry))
        try:
            refused = [r for r in await self._link.later(commands) if isinstance(r, hiredis.ReplyError)]
        except LinkDown as error:
            raise StoreUnavailable(f"remembering replies: {error}") from error
        # A script that Redis has forgotten leaves entries in tails; the next read notes them again.
        if refused and not all(str(r).startswith("NOSCRIPT") for r in refused):
            raise StoreUnavailable(f"remembering replies: {refused[0]}")

    async def recall(self, event_id: str, fingerprint: bytes) -> tuple[Outcome, bytes | None]:
        """What the ledger says: NEW (nothing, or a lease that ran out), PENDING, REPEATED with the reply, CONFLICT."""
        try:
            seen = cast(bytes | None, await self._link.call("GET", names.ledger(event_id)))
        except (LinkDown, hiredis.ReplyError) as error:
            raise StoreUnavailable(f"recalling a reply: {error}") from error
        if seen is None:
            return Outcome.NEW, None
        if seen[:16] != fingerprint:
            return Outcome.CONFLICT, None
        if seen[16:17] == b"D":
            return Outcome.REPEATED, seen[17:]
        return (Outcome.PENDING if int(seen[17:]) > time.time() * 1_000 else Outcome.NEW), None

    async def read(self, view_name: str, entity_keys: Sequence[str], as_of_us: int) -> list[EntityRead]:
        """A view's features of some entities as of a time, tail included, nothing written.

        Raises KeyError for an unknown view, StoreUnavailable, feature_store.codec.StateCorrupt.
        """
        v = next((i for i, view in enumerate(self._plan.views) if view.name == view_name), None)
        if v is None:
            raise KeyError(view_name)
        view = self._plan.views[v]
        try:
            version = await self._current_version()
            commands: list[Command] = [("MULTI",)]
            for key in entity_keys:
                shard = shard_of(key, self._shards)
                args = (view.entity.name, shard, version)
                commands += (
                    ("HMGET", names.meta(*args), "offset", "clock", "progress_us", "topic_id"),
                    ("GET", names.state_prefix(*args, view.name) + key),
                    ("HGETALL", names.tail_prefix(*args, view.name) + key),
                )
            found = (await self._link.calls([*commands, ("EXEC",)]))[-1]
            if isinstance(found, hiredis.ReplyError):
                raise found
        except (LinkDown, hiredis.ReplyError) as error:
            raise StoreUnavailable(f"reading features: {error}") from error
        metas, states, tails = found[0::3], found[1::3], found[2::3]
        state = self._codecs[v].decode(states)
        group = np.arange(len(entity_keys), dtype=np.int64)
        queries = Queries(group, np.full(len(group), as_of_us, dtype=np.int64), np.full(len(group), LAST_ID))
        values = view_matrix(view, state, _tail_events(view, self._rows[v], tails), queries)
        events = np.bincount(state.group, minlength=len(entity_keys)).tolist()
        now_us = time.time_ns() // 1_000
        return [
            EntityRead(
                key=key,
                features=dict(zip(view.features, values[i].tolist(), strict=True)),
                known=bool(events[i]) or bool(tails[i]),
                lost=metas[i][0] is None or metas[i][2] is None,
                lag_ms=max(0, (now_us - int(metas[i][2] or 0)) // 1_000),
            )
            for i, key in enumerate(entity_keys)
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


def _columns(plan: FeaturePlan, requests: Sequence[FeatureRequest]) -> tuple[Int64s, dict[str, Int64s]]:
    time_us = np.fromiter((r.time_us for r in requests), dtype=np.int64, count=len(requests))
    fields = {
        name: np.fromiter((r.fields[name] for r in requests), dtype=np.int64, count=len(requests))
        for name in plan.source.fields
    }
    return time_us, fields


def _tail_events(view: FeatureView, row: Struct, tails: Sequence[Sequence[bytes]]) -> NewEvents:
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
