"""The worker's side of the feature state: claims shards, absorbs micro-batches, exactly once.

A shard's states, absorbed offset and writer's epoch share a hash slot, and one atomic script a shard applies a
micro-batch to all of them (`update_scripts`). It refuses a writer of an older epoch or of a version that is served no
more, and a batch that does not begin at the offset that Redis holds; so a crash, a paused process that wakes, a
rebalance or a Redis that went back in time all end in: go on from the offset in Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import redis
from redis.exceptions import NoScriptError

from feature_store import keys as names
from feature_store import state_views
from feature_store.admission import UNSET_CLOCK
from feature_store.codec import StateCodec
from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.source_files import DAY_US
from feature_store.state import merge
from feature_store.update_rows import events_of, labels_of, origin_of
from feature_store.update_scripts import APPLY, CLAIM, HEARTBEAT
from feature_store.update_types import (
    Applied,
    EventColumns,
    OnConflicts,
    ShardPosition,
    ShardUpdate,
    Status,
    VersionSuperseded,
)

__all__ = [
    "Applied",
    "EventColumns",
    "OnConflicts",
    "ShardPosition",
    "ShardUpdate",
    "StateWriter",
    "Status",
    "VersionSuperseded",
    "needs_tail",
    "tail_field",
]


class StateWriter:
    """Writes the shards it claimed. One per process; not for several threads.

    Methods raise redis.exceptions.RedisError where Redis does not answer; whether the last `apply` took effect is then
    told by the next one (`moved` to its `next_offset`).
    """

    def __init__(
        self, client: redis.Redis, plan: FeaturePlan, owner: str, pointer: str = names.VERSION_POINTER
    ) -> None:
        """`client` must not decode responses. `owner` is unique to this process's life.

        `pointer`: NEXT_POINTER to bring a rebuilt version up to date, unseen; such a writer leaves the tails alone,
        and raises VersionSuperseded where there is no such version.
        """
        self._redis = client
        self._plan = plan
        self._owner = owner
        self._codecs = {v.name: StateCodec(v) for v in plan.views}
        self._epochs: dict[tuple[str, int], int] = {}
        self._pointer = pointer
        self._serves = pointer == names.VERSION_POINTER
        if self._serves:
            client.set(pointer, names.FIRST_VERSION, nx=True)
        self.version = self.current_version()
        if not self.version:
            raise VersionSuperseded(f"{pointer}: there is no such version")
        state_views.keep(client, self.version, plan)
        self._scripts = {text: client.register_script(text) for text in (CLAIM, APPLY, HEARTBEAT)}

    def current_version(self) -> str:
        """The version that the pointer names; where it is not `version`, make a new writer."""
        absent = names.FIRST_VERSION if self._serves else ""
        return cast(bytes, self._redis.get(self._pointer) or absent.encode()).decode()

    def claim(
        self, entity: str, topic: str, topic_id: str, shards: Sequence[int], bases: Mapping[int, str] | None = None
    ) -> dict[int, ShardPosition]:
        """Take the shards over: from now on every other writer is refused. Gives where each one's log goes on.

        `bases`: by shard the base that its state is known, outside Redis, to have had: where Redis lacks it the shard
        is marked as lost. Raises VersionSuperseded.
        """
        # An emptied Redis has no pointer: it begins with the first version again.
        first = "1" if self._serves and self.version == names.FIRST_VERSION else "0"
        known = bases or {}
        calls = [
            (
                CLAIM,
                [names.meta(entity, s, self.version), self._pointer],
                [self._owner, topic, topic_id, str(UNSET_CLOCK), self.version, first, known.get(s, "")],
            )
            for s in shards
        ]
        out = {}
        for shard, (status, *found) in zip(shards, self._call(calls), strict=True):
            if status != b"ok":
                raise VersionSuperseded(f"version {self.version} is not written any more")
            epoch, offset, clock, progress_us, base, lost = found
            self._epochs[entity, shard] = int(epoch)
            out[shard] = ShardPosition(
                shard, int(epoch), int(offset), int(clock), int(progress_us), base.decode(), lost.decode()
            )
        return out

    def held(self) -> bool:
        """Whether the served version is to wait until the next one has passed it."""
        return bool(self._redis.exists(names.HOLD))

    def served_offsets(self, entity: str, shards: Sequence[int]) -> dict[int, int]:
        """How far the served version has absorbed these shards' logs; 0 where nobody has begun."""
        version = cast(bytes, self._redis.get(names.VERSION_POINTER) or names.FIRST_VERSION.encode()).decode()
        pipe = self._redis.pipeline(transaction=False)
        for shard in shards:
            pipe.hget(names.meta(entity, shard, version), "offset")
        return {shard: int(found or 0) for shard, found in zip(shards, pipe.execute(), strict=True)}

    def heartbeat(self, entity: str, progress_us: Mapping[int, int]) -> dict[int, Status]:
        """Say for each shard that everything recorded before `progress_us` (wall clock) is absorbed."""
        calls = [
            (
                HEARTBEAT,
                [names.meta(entity, s, self.version), self._pointer],
                [self._epoch(entity, s), self._owner, at, self.version],
            )
            for s, at in progress_us.items()
        ]
        results = self._call(calls)
        return {s: cast(Status, r.decode()) for s, r in zip(progress_us, results, strict=True)}

    def apply(
        self, entity: str, updates: Sequence[ShardUpdate], on_conflicts: OnConflicts | None = None
    ) -> list[Applied]:
        """Absorb one micro-batch of several shards: one pipelined read, one pipelined write, atomic per shard.

        `on_conflicts` is called before anything is written, where there are conflicts: what it does (a dead letter)
        is done before the offset moves on. Raises KeyError for a shard that was not claimed and
        feature_store.codec.StateCorrupt for damaged state.
        """
        index: dict[tuple[int, str], int] = {}
        for update in updates:
            for part in update.parts:
                for key in part.keys:
                    index.setdefault((update.shard, key), len(index))
        entities = list(index)
        live_tails, old = self._read(entity, updates, entities)
        states: dict[str, list[bytes]] = {}
        conflicts: dict[int, set[tuple[int, int]]] = {u.shard: set() for u in updates}
        duplicates: dict[int, int] = {u.shard: 0 for u in updates}
        for view in self._plan.views_of(entity):
            codec = self._codecs[view.name]
            events, events_from = events_of(view, updates, index)
            merged = merge(view, codec.decode(old[view.name]), events, labels_of(view, updates, index))
            for row in merged.conflicts.tolist():
                shard, part_index, part_row = origin_of(events_from, row)
                conflicts[shard].add((part_index, part_row))
            for row in merged.duplicates.tolist():
                duplicates[origin_of(events_from, row)[0]] += 1
            states[view.name] = codec.encode(merged.points, len(entities))
        if on_conflicts is not None and any(conflicts.values()):
            on_conflicts({shard: tuple(sorted(found)) for shard, found in conflicts.items() if found})
        by_shard: dict[int, list[int]] = {u.shard: [] for u in updates}
        for i, (shard, _) in enumerate(entities):
            by_shard[shard].append(i)
        calls = [
            self._apply_call(entity, u, entities, by_shard[u.shard], states, u.shard in live_tails) for u in updates
        ]
        return [
            Applied(
                u.shard,
                cast(Status, status.decode()),
                int(offset),
                tuple(sorted(conflicts[u.shard])),
                duplicates[u.shard],
            )
            for u, (status, offset) in zip(updates, self._call(calls), strict=True)
        ]

    def _read(
        self, entity: str, updates: Sequence[ShardUpdate], entities: Sequence[tuple[int, str]]
    ) -> tuple[set[int], dict[str, list[bytes | None]]]:
        """Shards with tails, and each view's old states in the order of `entities` (which is by shard)."""
        views = self._plan.views_of(entity)
        by_shard: dict[int, list[str]] = {u.shard: [] for u in updates}
        for shard, key in entities:
            by_shard[shard].append(key)
        pipe = self._redis.pipeline(transaction=False)
        for shard, keys in by_shard.items():
            pipe.hget(names.meta(entity, shard, self.version), "tails")
            for view in views:
                prefix = names.state_prefix(entity, shard, self.version, view.name)
                if keys:
                    pipe.mget([prefix + key for key in keys])
        results = iter(pipe.execute())
        live: set[int] = set()
        old: dict[str, list[bytes | None]] = {view.name: [] for view in views}
        for shard, keys in by_shard.items():
            if int(next(results) or 0) > 0:
                live.add(shard)
            for view in views:
                if keys:
                    old[view.name].extend(next(results))
        return live, old

    def _apply_call(
        self,
        entity: str,
        update: ShardUpdate,
        entities: Sequence[tuple[int, str]],
        members: Sequence[int],
        states: Mapping[str, Sequence[bytes]],
        has_tails: bool,
    ) -> tuple[str, list[str], list[Any]]:
        shard = update.shard
        keys = [names.meta(entity, shard, self.version), self._pointer]
        args: list[Any] = [self._epoch(entity, shard), self._owner, update.expected_offset, update.next_offset]
        args += [update.clock_us, update.progress_us, self.version, len(members) * len(states)]
        for view, blobs in states.items():
            prefix = names.state_prefix(entity, shard, self.version, view)
            keys += [prefix + entities[i][1] for i in members]
            args += [blobs[i] for i in members]
        if has_tails and self._serves:
            for view_name, key, ids in self._forgotten(entity, update):
                keys.append(names.tail_prefix(entity, shard, view_name) + key)
                args.append(len(ids))
                args += ids
        return APPLY, keys, args

    def _forgotten(self, entity: str, update: ShardUpdate) -> list[tuple[str, str, list[bytes]]]:
        """Per view and key, the ids (8 bytes each) that the tail forgets."""
        ids: dict[str, list[bytes]] = {}
        for part in update.parts:
            if part.known_at_us is None:
                for k, i in zip(np.asarray(part.key_index).tolist(), part.id.tolist(), strict=True):
                    ids.setdefault(part.keys[k], []).append(tail_field(i))
        for key, i in update.forget:
            ids.setdefault(key, []).append(tail_field(i))
        views = [v.name for v in self._plan.views_of(entity) if needs_tail(v)]
        return [(view, key, found) for view in views for key, found in ids.items()]

    def _epoch(self, entity: str, shard: int) -> int:
        return self._epochs[entity, shard]

    def _call(self, calls: Sequence[tuple[str, list[str], list[Any]]]) -> list[Any]:
        """Run scripts in one pipelined round trip; a server that lost its scripts gets them again."""
        if not calls:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for text, keys, args in calls:
            pipe.evalsha(self._scripts[text].sha, len(keys), *keys, *args)
        results = pipe.execute(raise_on_error=False)
        if any(isinstance(r, NoScriptError) for r in results):
            for text in {text for text, _, _ in calls}:
                self._redis.script_load(text)
            missing = [i for i, r in enumerate(results) if isinstance(r, NoScriptError)]
            for i, r in zip(missing, self._call([calls[i] for i in missing]), strict=True):
                results[i] = r
        for r in results:
            if isinstance(r, Exception):
                raise r
        return list(results)


def tail_field(id_: int) -> bytes:
    """An event's field in the tail hash."""
    return id_.to_bytes(8, "little")


def needs_tail(view: FeatureView) -> bool:
    """Whether an event can be inside the view's windows before the worker has absorbed it.

    A delay of a day or more leaves the worker that long; a shorter one does not.
    """
    return view.delay_us < DAY_US
