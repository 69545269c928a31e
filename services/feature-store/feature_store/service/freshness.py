"""How far each shard's state is: offsets and clocks from Redis against the logs' ends from Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from feature_store import keys as names
from feature_store.definitions import FeaturePlan
from feature_store.service.errors import StateUnavailable
from feature_store.service.log_ends import UNKNOWN, LogEnds


@dataclass(frozen=True, slots=True)
class ShardFreshness:
    """`offset`: next to absorb, -1 where the shard has no state; `log_end_offset`: -1 where Kafka does not say.

    `clock_us`: the shard's event time, -1 before its first event. `lag_ms`: how long ago everything recorded by then
    was absorbed; -1 where the shard has no state.
    """

    entity: str
    shard: int
    topic: str
    offset: int
    log_end_offset: int
    clock_us: int
    lag_ms: int

    @property
    def behind(self) -> int:
        """Log entries not absorbed yet, at least 0; entries that are marks of transactions count too."""
        return max(0, self.log_end_offset - max(0, self.offset)) if self.log_end_offset >= 0 else 0


class FreshnessReader:
    """Reads what the worker writes, and compares it with what `ends` was told last."""

    def __init__(self, redis_url: str, plan: FeaturePlan, shards: int, ends: LogEnds, timeout_s: float) -> None:
        pool = redis.asyncio.ConnectionPool.from_url(
            redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._shards, self._ends = shards, ends
        self._topics = {entity.name: plan.topic_of(entity.name) for entity in plan.entities}

    @property
    def log_problem(self) -> str | None:
        """Why Kafka does not say where the logs end; None where it does."""
        return self._ends.problem

    async def close(self) -> None:
        await self._redis.aclose()

    async def shards(self) -> list[ShardFreshness]:
        """Every shard of every entity. Raises StateUnavailable where Redis does not answer."""
        wanted = [(entity, shard) for entity in self._topics for shard in range(self._shards)]
        metas, ends = await self._metas(wanted), self._ends.ends
        now_us = time.time_ns() // 1_000
        found = []
        for (entity, shard), (offset, clock, progress) in zip(wanted, metas, strict=True):
            topic = self._topics[entity]
            end = ends.get((topic, shard), UNKNOWN)
            lost = offset < 0 or progress < 0
            lag_ms = -1 if lost else max(0, now_us - progress) // 1_000
            found.append(ShardFreshness(entity, shard, topic, -1 if lost else offset, end, clock, lag_ms))
        return found

    async def clocks(self, entity: str, shards: Iterable[int]) -> dict[int, int]:
        """Event clocks (microseconds, -1 unset) of some shards of an entity. Raises StateUnavailable."""
        wanted = sorted(set(shards))
        metas = await self._metas([(entity, shard) for shard in wanted])
        return {shard: clock for shard, (_, clock, _) in zip(wanted, metas, strict=True)}

    async def _metas(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[int, int, int]]:
        """Offset, clock and progress of each (entity, shard) of the served version; -1 where there is none."""
        try:
            version = cast(bytes | None, await self._redis.get(names.VERSION_POINTER))
            served = (version or names.FIRST_VERSION.encode()).decode()
            pipe = self._redis.pipeline(transaction=False)
            for entity, shard in wanted:
                pipe.hmget(names.meta(entity, shard, served), "offset", "clock", "progress_us")
            rows = await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise StateUnavailable(f"Redis does not answer: {error}") from error
        return [(_number(offset), _number(clock), _number(progress)) for offset, clock, progress in rows]


def _number(value: bytes | None) -> int:
    return -1 if value is None else int(value)
