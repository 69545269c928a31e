"""The gateway's side of the feature state: for many requests at once, one atomic script in one round trip.

Per request the script looks into the ledger of requests, judges the event's time against its shard's clock, appends
the event to its entities' tails and reads states and tails. So the next request, on any process, sees this one; the
worker's absorption later moves the event from the tail into the state, both under the same id.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, Self, cast

import numpy as np
import redis.asyncio
from numpy.typing import NDArray
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from feature_store import keys as names
from feature_store.assemble import request_matrix, view_matrix
from feature_store.codec import StateCodec
from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.ids import id64
from feature_store.kernel import LAST_ID, Int64s, Points, Queries
from feature_store.sharding import shard_of
from feature_store.state import NewEvents
from feature_store.updates import needs_tail, tail_field


class StoreUnavailable(Exception):
    """Redis did not answer in time; nothing is known of what it did."""


class StoreMisconfigured(Exception):
    """Redis runs with a setting that loses state; the message says which and what would be right."""


class Outcome(IntEnum):
    """What the ledger and the clock say of a request. Only NEW (and a taken-over one, also NEW) wrote anything."""

    NEW = 0
    REPEATED = 1
    PENDING = 2
    CONFLICT = 3
    LATE = 4
    FUTURE = 5


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """An event whose features are wanted. `keys`: entity name -> key; `fingerprint`: 16 bytes of the payload."""

    event_id: str
    time_us: int
    keys: Mapping[str, str]
    fields: Mapping[str, int]
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class ViewRead:
    """What a view's features were made of. `known`: the entity has history besides this event."""

    view: str
    entity: str
    key: str
    version: str
    topic: str
    topic_id: str
    shard: int
    offset: int
    tail_ids: tuple[int, ...]
    known: bool
    lost: bool


@dataclass(frozen=True, slots=True)
class BatchRead:
    """One row per request. `vectors` float32[n, features], zeros where the outcome is not NEW.

    `feature_usable` bool[n, features]: false for the features of a view whose shard has no state (lost, not built);
    `usable` bool[n]: all of them. `lag_ms`: how far the worst shard's progress trails the wall clock.
    """

    outcomes: list[Outcome]
    replies: list[bytes | None]
    vectors: NDArray[np.float32]
    feature_usable: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    inputs: list[list[ViewRead]]
    lag_ms: NDArray[np.int64]
    clock_us: list[int]


# KEYS per request: ledger, then per view meta, state, tail. ARGV: lease ms, lateness, max step, views, ledger ttl ms,
# tail ttl ms; per view: 1 if it has a tail, 1 if its meta's clock judges the event's time; then per request:
# fingerprint, event time, field of the tail, per view the tail's entry.
_READ = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease, lateness, step, views = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local keys, args = 1 + 3 * views, 3 + views
local out = {}
for r = 0, #KEYS / keys - 1 do
  local k, a = r * keys + 1, 6 + 2 * views + r * args
  local seen = redis.call('GET', KEYS[k])
  local verdict, told = 0, false
  if seen then
    if string.sub(seen, 1, 16) ~= ARGV[a + 1] then verdict = 3
    elseif string.sub(seen, 17, 17) == 'D' then verdict = 1; told = string.sub(seen, 18)
    elseif tonumber(string.sub(seen, 18)) > now then verdict = 2 end
  end
  local views_read = {}
  for v = 1, views do
    if verdict ~= 0 then break end
    local m = redis.call('HMGET', KEYS[k + 3 * v - 2], 'offset', 'clock', 'progress_us', 'topic_id')
    views_read[v] = m
    if ARGV[6 + 2 * v] == '1' and m[2] and tonumber(m[2]) >= 0 then
      local at, clock = tonumber(ARGV[a + 2]), tonumber(m[2])
      if at < clock - lateness then verdict = 4; told = m[2]
      elseif at > clock + step then verdict = 5; told = m[2] end
    end
  end
  if verdict == 0 then
    redis.call('SET', KEYS[k], ARGV[a + 1] .. 'P' .. string.format('%.0f', now + lease), 'PX', ARGV[5])
    for v = 1, views do
      local m = views_read[v]
      m[5] = redis.call('GET', KEYS[k + 3 * v - 1])
      if ARGV[5 + 2 * v] == '1' then
        local tail = KEYS[k + 3 * v]
        if redis.call('HSETNX', tail, ARGV[a + 3], ARGV[a + 3 + v]) == 1 then
          redis.call('HINCRBY', KEYS[k + 3 * v - 2], 'tails', 1)
          redis.call('PEXPIRE', tail, ARGV[6])
        end
        m[6] = redis.call('HGETALL', tail)
      end
    end
    out[r + 1] = {verdict, told, views_read}
  else
    out[r + 1] = {verdict, told}
  end
end
return out
"""

# KEYS: tail, meta. ARGV: fields that the state holds already.
_TIDY = """
local removed = redis.call('HDEL', KEYS[1], unpack(ARGV))
if removed > 0 then redis.call('HINCRBY', KEYS[2], 'tails', -removed) end
"""


class OnlineFeatures:
    """Reads features and appends events, for one process's event loop."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        plan: FeaturePlan,
        shards: int,
        lease_ms: int = 1_000,
        ledger_ttl_ms: int = 3_600_000,
        tail_ttl_ms: int = 7 * 86_400_000,
    ) -> None:
        self._redis = client
        self._plan = plan
        self._shards = shards
        self._ledger_ttl_ms = ledger_ttl_ms
        self._codecs = [StateCodec(v) for v in plan.views]
        self._rows = [Struct(f"<{1 + len(v.columns)}q") for v in plan.views]
        self._tails = [needs_tail(v) for v in plan.views]
        self._version = ""
        self._version_read = 0.0
        self._read_sha = self._tidy_sha = ""
        self._untidy: list[tuple[str, str, list[bytes]]] = []
        self._head: list[Any] = [
            lease_ms,
            plan.lateness_us,
            plan.max_step_us,
            len(plan.views),
            ledger_ttl_ms,
            tail_ttl_ms,
        ]
        for view, tail in zip(plan.views, self._tails, strict=True):
            self._head += [int(tail), int(not view.rekeyed)]
        self._column_of_view: list[slice] = []
        at = len(plan.request_features)
        for view in plan.views:
            self._column_of_view.append(slice(at, at + len(view.features)))
            at += len(view.features)

    @classmethod
    async def connect(cls, url: str, plan: FeaturePlan, shards: int, timeout_s: float = 0.25, **settings: Any) -> Self:
        """A reader on the Redis at `url`; every call gives up after `timeout_s`.

        Raises StoreMisconfigured where Redis may evict keys, StoreUnavailable where it does not answer.
        """
        client = redis.asyncio.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        self = cls(client, plan, shards, **settings)
        try:
            await self.check()
        except BaseException:
            await client.aclose()
            raise
        return self

    async def check(self) -> None:
        """Raises StoreMisconfigured or StoreUnavailable where Redis cannot serve; loads the scripts."""
        try:
            policy = (await self._redis.config_get("maxmemory-policy")).get("maxmemory-policy")
            if policy not in ("noeviction", b"noeviction"):
                raise StoreMisconfigured(
                    f"Redis has maxmemory-policy {policy!r}, which drops feature state when memory is short;"
                    " set it to noeviction"
                )
            await self._load()
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(str(error)) from error

    async def close(self) -> None:
        await self._redis.aclose()

    async def _load(self) -> None:
        self._read_sha = await self._redis.script_load(_READ)
        self._tidy_sha = await self._redis.script_load(_TIDY)

    async def _current_version(self) -> str:
        """The served state version, read at most once a second."""
        now = time.monotonic()
        if not self._version or now - self._version_read > 1.0:
            self._version_read = now
            found = cast(bytes | None, await self._redis.get(names.VERSION_POINTER))
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
        try:
            version = await self._current_version()
            keys, args = self._script_input(requests, version)
            try:
                rows = await self._redis.evalsha(self._read_sha, len(keys), *keys, *args)
            except NoScriptError:
                await self._load()
                rows = await self._redis.evalsha(self._read_sha, len(keys), *keys, *args)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"reading features: {error}") from error
        return self._assembled(requests, rows, keys, version)

    def _script_input(self, requests: Sequence[FeatureRequest], version: str) -> tuple[list[str], list[Any]]:
        keys: list[str] = []
        args: list[Any] = list(self._head)
        for r in requests:
            id_ = id64(r.event_id)
            keys.append(names.ledger(r.event_id))
            args += (r.fingerprint, r.time_us, tail_field(id_))
            for view, row in zip(self._plan.views, self._rows, strict=True):
                key = r.keys[view.entity.name]
                tag = names.tag(view.entity.name, shard_of(key, self._shards), version)
                keys += (f"{tag}m", f"{tag}s:{view.name}:{key}", f"{tag}t:{view.name}:{key}")
                args.append(row.pack(r.time_us, *(r.fields[c] for c in view.columns)))
        return keys, args

    def _assembled(
        self, requests: Sequence[FeatureRequest], rows: Sequence[Any], keys: Sequence[str], version: str
    ) -> BatchRead:
        n = len(requests)
        plan = self._plan
        outcomes = [Outcome(row[0]) for row in rows]
        new = [i for i, outcome in enumerate(outcomes) if outcome is Outcome.NEW]
        chosen = [requests[i] for i in new]
        time_us, fields = _columns(plan, chosen)
        queries_id = np.fromiter((id64(r.event_id) for r in chosen), dtype=np.int64, count=len(chosen))
        group = np.arange(len(chosen), dtype=np.int64)
        vectors = np.zeros((n, len(plan.features)), dtype=np.float32)
        feature_usable = np.zeros((n, len(plan.features)), dtype=np.bool_)
        lag_ms = np.zeros(n, dtype=np.int64)
        inputs: list[list[ViewRead]] = [[] for _ in range(n)]
        if new:
            own = slice(0, len(plan.request_features))
            vectors[new, own] = request_matrix(plan, time_us, fields)
            feature_usable[new, own] = True
            now_us = time.time_ns() // 1_000
            for v, view in enumerate(plan.views):
                read = [rows[i][2][v] for i in new]
                state = self._codecs[v].decode([m[4] for m in read])
                tail = _tail_events(view, self._rows[v], [m[5] for m in read]) if self._tails[v] else None
                queries = Queries(
                    group, time_us, queries_id if view.delay_us == 0 else np.full_like(queries_id, LAST_ID)
                )
                values = view_matrix(view, state, tail, queries)
                columns = self._column_of_view[v]
                vectors[new, columns] = values
                for i, m in zip(new, read, strict=True):
                    lost = m[0] is None or m[2] is None
                    feature_usable[i, columns] = not lost
                    if lost:
                        vectors[i, columns] = 0
                    else:
                        lag_ms[i] = max(lag_ms[i], (now_us - int(m[2])) // 1_000)
                    inputs[i].append(self._view_read(view, requests[i], m, version, lost))
                if tail is not None:
                    self._note_absorbed(v, state, tail, keys, new)
        return BatchRead(
            outcomes=outcomes,
            replies=[row[1] if o is Outcome.REPEATED else None for row, o in zip(rows, outcomes, strict=True)],
            vectors=vectors,
            feature_usable=feature_usable,
            usable=np.asarray(feature_usable.all(axis=1)),
            inputs=inputs,
            lag_ms=lag_ms,
            clock_us=[
                int(row[1]) if o in (Outcome.LATE, Outcome.FUTURE) else -1
                for row, o in zip(rows, outcomes, strict=True)
            ],
        )

    def _view_read(
        self, view: FeatureView, request: FeatureRequest, m: Sequence[Any], version: str, lost: bool
    ) -> ViewRead:
        key = request.keys[view.entity.name]
        tail = m[5] if len(m) > 5 else ()
        ids = tuple(int.from_bytes(f, "little") for f in tail[::2])
        return ViewRead(
            view=view.name,
            entity=view.entity.name,
            key=key,
            version=version,
            topic=view.topic,
            topic_id=(m[3] or b"").decode(),
            shard=shard_of(key, self._shards),
            offset=int(m[0] or 0),
            tail_ids=ids,
            known=m[4] is not None or len(ids) > 1,
            lost=lost,
        )

    def _note_absorbed(self, v: int, state: Points, tail: NewEvents, keys: Sequence[str], new: Sequence[int]) -> None:
        """Remember tail entries that the state already holds: the event reached the worker before the tail."""
        both = np.flatnonzero(np.isin(tail.id, state.id))
        per_request = 1 + 3 * len(self._plan.views)
        for row in both.tolist():
            g = int(tail.group[row])
            if np.any((state.group == g) & (state.id == tail.id[row])):
                k = new[g] * per_request + 1 + 3 * v
                self._untidy.append((keys[k + 2], keys[k], [tail_field(int(tail.id[row]))]))

    async def remember(self, replies: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Keep (event id, fingerprint, reply) for repeats of the request. Raises StoreUnavailable."""
        untidy, self._untidy = self._untidy, []
        pipe = self._redis.pipeline(transaction=False)
        for event_id, fingerprint, reply in replies:
            pipe.set(names.ledger(event_id), fingerprint + b"D" + reply, px=self._ledger_ttl_ms)
        for tail, meta, fields in untidy:
            pipe.evalsha(self._tidy_sha, 2, tail, meta, *fields)
        try:
            await pipe.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"remembering replies: {error}") from error

    async def recall(self, event_id: str, fingerprint: bytes) -> tuple[Outcome, bytes | None]:
        """What the ledger says: NEW (nothing, or a lease that ran out), PENDING, REPEATED with the reply, CONFLICT."""
        try:
            seen = cast(bytes | None, await self._redis.get(names.ledger(event_id)))
        except (RedisError, OSError, TimeoutError) as error:
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
            pipe = self._redis.pipeline(transaction=True)
            for key in entity_keys:
                shard = shard_of(key, self._shards)
                args = (view.entity.name, shard, version)
                pipe.hmget(names.meta(*args), "offset", "clock", "progress_us", "topic_id")
                pipe.get(names.state_prefix(*args, view.name) + key)
                pipe.hgetall(names.tail_prefix(*args, view.name) + key)
            found = await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"reading features: {error}") from error
        metas, states, tails = found[0::3], found[1::3], found[2::3]
        flat = [[x for pair in t.items() for x in pair] for t in tails]
        state = self._codecs[v].decode(states)
        group = np.arange(len(entity_keys), dtype=np.int64)
        queries = Queries(group, np.full(len(group), as_of_us, dtype=np.int64), np.full(len(group), LAST_ID))
        values = view_matrix(view, state, _tail_events(view, self._rows[v], flat), queries)
        now_us = time.time_ns() // 1_000
        return [
            EntityRead(
                key=key,
                features=dict(zip(view.features, values[i].tolist(), strict=True)),
                known=states[i] is not None or bool(tails[i]),
                lost=metas[i][0] is None or metas[i][2] is None,
                lag_ms=max(0, (now_us - int(metas[i][2] or 0)) // 1_000),
            )
            for i, key in enumerate(entity_keys)
        ]


@dataclass(frozen=True, slots=True)
class EntityRead:
    """One entity's features of one view, as of a time. `lost`: its shard has no state; the values mean nothing."""

    key: str
    features: dict[str, float]
    known: bool
    lost: bool
    lag_ms: int


def _columns(plan: FeaturePlan, requests: Sequence[FeatureRequest]) -> tuple[Int64s, dict[str, Int64s]]:
    time_us = np.fromiter((r.time_us for r in requests), dtype=np.int64, count=len(requests))
    fields = {
        name: np.fromiter((r.fields[name] for r in requests), dtype=np.int64, count=len(requests))
        for name in plan.source.fields
    }
    return time_us, fields


def _tail_events(view: FeatureView, row: Struct, tails: Sequence[Sequence[bytes]]) -> NewEvents:
    """All entries of the tails (field, value, field, value, ... each) as events, group = index of the tail."""
    group = np.repeat(np.arange(len(tails), dtype=np.int64), [len(t) // 2 for t in tails])
    ids = np.frombuffer(b"".join([f for t in tails for f in t[::2]]), dtype="<i8").astype(np.int64)
    rows = np.frombuffer(b"".join([f for t in tails for f in t[1::2]]), dtype="<i8").reshape(-1, row.size // 8)
    columns = {name: rows[:, 1 + c].astype(np.int64) for c, name in enumerate(view.columns)}
    return NewEvents(group, rows[:, 0].astype(np.int64), ids, columns)
