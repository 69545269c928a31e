"""The gateway's side of the feature state: for many requests at once, one atomic script in one round trip.

Per request the script looks into the ledger of requests, judges the event's time against its shard's clock, appends
the event to its entities' tails and reads states and tails. So the next request, on any process, sees this one; the
worker's absorption later moves the event from the tail into the state, both under the same id.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self, cast

import hiredis
import numpy as np
from numpy.typing import NDArray

from feature_store import keys as names
from feature_store.assemble import request_matrix, view_matrix
from feature_store.definitions import FeaturePlan
from feature_store.ids import id64
from feature_store.kernel import LAST_ID, Queries
from feature_store.online_assembly import ReadAssembler, columns_of, sound, tail_events
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
from feature_store.updates import tail_field

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
        self._assembler = ReadAssembler(plan, self._shard_of_key)
        self._rows, self._tails = self._assembler.rows, self._assembler.tails
        # The one served, as far as is known: every read compares it with the pointer.
        self._version = names.FIRST_VERSION
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

    @property
    def plan(self) -> FeaturePlan:
        return self._plan

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

    def request_vectors(self, requests: Sequence[FeatureRequest]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors from the requests alone, when state cannot be read: float32[n, features], usable bool[features]."""
        vectors = np.zeros((len(requests), len(self._plan.features)), dtype=np.float32)
        n = len(self._plan.request_features)
        vectors[:, :n] = request_matrix(self._plan, *columns_of(self._plan, requests))
        usable = np.zeros(len(self._plan.features), dtype=np.bool_)
        usable[:n] = True
        return vectors, usable

    async def read_and_append(self, requests: Sequence[FeatureRequest]) -> BatchRead:
        """Ledger, clock, tails and states of all requests in one atomic round trip; see BatchRead.

        Event ids must differ within one call. Raises StoreUnavailable.
        """
        ids = [id64(r.event_id) for r in requests]
        try:
            version = self._version
            while True:
                reply = await self._run_read(self._script_input(requests, ids, version))
                if reply[0] is None:
                    break
                # The served version is another one since it was last looked up; the script did nothing.
                version = self._version = reply[0].decode()
        except (LinkDown, hiredis.ReplyError) as error:
            raise StoreUnavailable(f"reading features: {error}") from error
        read, absorbed = self._assembler.assembled(requests, ids, reply[1], reply[2], version)
        for v, key, id_ in absorbed:
            if len(self._untidy) < _UNTIDY_LIMIT:  # the next read of the entity tells of it again
                meta, _, name = self._places(v, key, version)[1]
                self._untidy[name, tail_field(id_)] = meta
        return read

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
            found.append(names.tail_prefix(view.entity.name, shard, view.name) + key)
        return shard, [name.encode() for name in found]

    def _shard_of_key(self, v: int, key: str, version: str) -> int:
        return self._places(v, key, version)[0]

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

        Raises KeyError for an unknown view, StoreUnavailable.
        """
        v = next((i for i, view in enumerate(self._plan.views) if view.name == view_name), None)
        if v is None:
            raise KeyError(view_name)
        view = self._plan.views[v]
        try:
            version = self._version
            while True:
                commands: list[Command] = [("MULTI",), ("GET", names.VERSION_POINTER)]
                for key in entity_keys:
                    shard = shard_of(key, self._shards)
                    args = (view.entity.name, shard, version)
                    commands += (
                        ("HMGET", names.meta(*args), "offset", "clock", "progress_us", "topic_id"),
                        ("GET", names.state_prefix(*args, view.name) + key),
                        ("HGETALL", names.tail_prefix(view.entity.name, shard, view.name) + key),
                    )
                reply = (await self._link.calls([*commands, ("EXEC",)]))[-1]
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
                served = (reply[0] or names.FIRST_VERSION.encode()).decode()
                if served == version:
                    break
                version = self._version = served
        except (LinkDown, hiredis.ReplyError) as error:
            raise StoreUnavailable(f"reading features: {error}") from error
        found = reply[1:]
        metas, states, tails = found[0::3], found[1::3], found[2::3]
        state, broken = sound(self._assembler.codecs[v], states)
        group = np.arange(len(entity_keys), dtype=np.int64)
        queries = Queries(group, np.full(len(group), as_of_us, dtype=np.int64), np.full(len(group), LAST_ID))
        values = view_matrix(view, state, tail_events(view, self._rows[v], tails), queries)
        events = np.bincount(state.group, minlength=len(entity_keys)).tolist()
        now_us = time.time_ns() // 1_000
        return [
            EntityRead(
                key=key,
                features=dict(zip(view.features, values[i].tolist(), strict=True)),
                known=bool(events[i]) or bool(tails[i]),
                lost=i in broken or metas[i][0] is None or metas[i][2] is None,
                lag_ms=max(0, (now_us - int(metas[i][2] or 0)) // 1_000),
            )
            for i, key in enumerate(entity_keys)
        ]
