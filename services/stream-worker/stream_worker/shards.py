"""Which shards this worker writes, and how far each one is: the table that the state stage keeps. No I/O.

A shard is ours once the group assigned it *and* Redis granted it (StateWriter.claim). Between the two, and after
anything that leaves doubt (Redis gone, a refused write, a gap), it waits with a reason and a time to try again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from feature_store.updates import ShardPosition

from stream_worker.consumed import NOWHERE
from stream_worker.wire import Ints

ShardKey = tuple[str, int]
"""Topic and partition."""


@dataclass(slots=True)
class Shard:
    """A claimed shard. `offset`: as in Redis; `read_offset`: read up to here, past Kafka's own control records."""

    entity: str
    topic: str
    partition: int
    offset: int
    clock_us: int
    progress_us: int
    read_offset: int
    told_at: float = 0.0

    @property
    def key(self) -> ShardKey:
        return self.topic, self.partition


@dataclass(frozen=True, slots=True)
class Waiting:
    """An assigned shard that is not claimed: why, and when (monotonic seconds) to try again."""

    reason: str
    due: float


class ShardTable:
    """Assigned shards: claimed ones and waiting ones."""

    def __init__(self, topics: Mapping[str, str], shards: int) -> None:
        """`topics`: topic → entity."""
        self._topics = topics
        self._claimed: dict[ShardKey, Shard] = {}
        self._waiting: dict[ShardKey, Waiting] = {}
        self._read = {topic: np.full(shards, NOWHERE, dtype=np.int64) for topic in topics}

    def __contains__(self, key: ShardKey) -> bool:
        return key in self._claimed

    def __iter__(self) -> Iterator[Shard]:
        return iter(list(self._claimed.values()))

    def get(self, key: ShardKey) -> Shard | None:
        return self._claimed.get(key)

    @property
    def assigned(self) -> list[ShardKey]:
        return [*self._claimed, *self._waiting]

    @property
    def read_offsets(self) -> Mapping[str, Ints]:
        """Topic → int64[shards]: next offset to read; NOWHERE for a shard that is not claimed."""
        return self._read

    def claimed(self, key: ShardKey, position: ShardPosition) -> Shard:
        """Redis granted the shard."""
        topic, partition = key
        shard = Shard(
            self._topics[topic],
            topic,
            partition,
            position.offset,
            position.clock_us,
            position.progress_us,
            position.offset,
        )
        self._waiting.pop(key, None)
        self._claimed[key] = shard
        self._read[topic][partition] = position.offset
        return shard

    def read_up_to(self, shard: Shard, offset: int) -> None:
        if offset > shard.read_offset:
            shard.read_offset = offset
            self._read[shard.topic][shard.partition] = offset

    def wait(self, key: ShardKey, reason: str, seconds: float = 0.0) -> None:
        """The shard is assigned, and not to be written until it is claimed again, in `seconds` at the earliest."""
        self._claimed.pop(key, None)
        self._read[key[0]][key[1]] = NOWHERE
        self._waiting[key] = Waiting(reason, time.monotonic() + seconds)

    def wait_all(self, reason: str, seconds: float = 0.0) -> None:
        for key in list(self._claimed):
            self.wait(key, reason, seconds)

    def drop(self, key: ShardKey) -> None:
        """The group took the shard away."""
        self._claimed.pop(key, None)
        self._waiting.pop(key, None)
        self._read[key[0]][key[1]] = NOWHERE

    def due(self) -> dict[str, list[ShardKey]]:
        """Waiting shards whose time has come, by reason."""
        now = time.monotonic()
        out: dict[str, list[ShardKey]] = {}
        for key, waiting in self._waiting.items():
            if waiting.due <= now:
                out.setdefault(waiting.reason, []).append(key)
        return out

    def waiting_for(self, reason: str) -> list[ShardKey]:
        return [key for key, waiting in self._waiting.items() if waiting.reason == reason]

    def by_entity(self) -> dict[str, list[Shard]]:
        out: dict[str, list[Shard]] = {entity: [] for entity in self._topics.values()}
        for shard in self._claimed.values():
            out[shard.entity].append(shard)
        return out
