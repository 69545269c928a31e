"""What the service answers, without a transport: views, features of entities as of a time, freshness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from service_kit.health import Health

from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.online import EntityRead, OnlineFeatures, StoreMisconfigured, StoreUnavailable
from feature_store.service.dead_letters import DeadLetterCounter
from feature_store.service.errors import InvalidField, StateUnavailable, UnknownView
from feature_store.service.freshness import FreshnessReader, ShardFreshness
from feature_store.service.service_metrics import ServiceMetrics
from feature_store.sharding import shard_of
from feature_store.validation import IDENTIFIER, TIME

MAX_KEYS = 1_000
_REDIS, _KAFKA = "redis", "kafka"


Connect = Callable[[], Awaitable[OnlineFeatures]]


class FeatureService:
    """Made without Redis; `look` connects, and tells health and metrics what it finds, again and again."""

    def __init__(
        self,
        plan: FeaturePlan,
        shards: int,
        connect: Connect,
        freshness: FreshnessReader,
        letters: DeadLetterCounter,
        health: Health,
        metrics: ServiceMetrics,
    ) -> None:
        self._plan, self._shards, self._connect = plan, shards, connect
        self._freshness, self._letters, self._health, self._metrics = freshness, letters, health, metrics
        self._views = {view.name: view for view in plan.views}
        self._online: OnlineFeatures | None = None

    def views(self) -> tuple[FeatureView, ...]:
        """Every view of the plan."""
        return self._plan.views

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a feature's value or its state."""
        return self._plan.fingerprint

    async def features(self, view_name: str, keys: Sequence[str], as_of_us: int | None) -> list[EntityRead]:
        """Features of the entities `keys` as of a time (microseconds; None: now), in their order.

        Raises:
            UnknownView: no such view.
            InvalidField: a key, their number or the time is out of range, or before what the state goes back to.
            StateUnavailable: Redis does not answer, or a shard's state is lost or not built yet.
        """
        view = self._views.get(view_name)
        if view is None:
            raise UnknownView(f"view: there is no {view_name[:80]!r}; there are {', '.join(self._views)}", "view")
        at_us = _checked(keys, as_of_us)
        if self._online is None:
            raise StateUnavailable("Redis does not answer")
        try:
            found = await self._online.read(view_name, keys, at_us)
        except StoreUnavailable as error:
            raise StateUnavailable(f"Redis does not answer: {error}") from error
        # Clocks are read last: what was dropped before the state was read, was dropped for a clock no younger.
        shards = [shard_of(key, self._shards) for key in keys]
        clocks = await self._freshness.clocks(view.entity.name, shards)
        for i, (shard, entity) in enumerate(zip(shards, found, strict=True)):
            if entity.lost:
                raise StateUnavailable(
                    f"keys.{i}: the state of {view.entity.name} shard {shard} is lost, damaged or not built yet",
                    f"keys.{i}",
                )
            oldest_us = clocks[shard] - view.lateness_us
            if clocks[shard] >= 0 and at_us < oldest_us:
                raise InvalidField(
                    "as_of",
                    f"is {_text(at_us)}; the live state of {entity.key!r} goes back to {_text(oldest_us)}"
                    " (`trine features compute` answers for any time)",
                )
        return found

    async def freshness(self) -> tuple[list[ShardFreshness], dict[str, int]]:
        """Every shard's progress; dead letters by reason. Raises StateUnavailable."""
        return await self._freshness.shards(), self._letters.counts

    async def look(self) -> None:
        """Connect where not connected; readiness, degradation and metrics as they are now.

        Raises StoreMisconfigured.
        """
        try:
            if self._online is None:
                self._online = await self._connect()
            else:
                await self._online.check()
            shards = await self._freshness.shards()
        except (StoreUnavailable, StateUnavailable) as error:
            self._health.block(_REDIS, str(error))
            return
        self._health.unblock(_REDIS)
        self._metrics.show(shards)
        problem = self._freshness.log_problem
        if problem is None:
            self._health.restore(_KAFKA)
        else:
            self._health.degrade(_KAFKA, problem)

    async def watch(self, every_s: float) -> None:
        """`look` until cancelled."""
        while True:
            try:
                await self.look()
            except StoreMisconfigured as error:
                self._health.block(_REDIS, str(error))
            await asyncio.sleep(every_s)

    async def close(self) -> None:
        if self._online is not None:
            await self._online.close()
        await self._freshness.close()


def _checked(keys: Sequence[str], as_of_us: int | None) -> int:
    """The time to answer for. Raises InvalidField."""
    if not 1 <= len(keys) <= MAX_KEYS:
        raise InvalidField("keys", f"has {len(keys)} entries; must have 1 to {MAX_KEYS:,}")
    for i, key in enumerate(keys):
        if wrong := IDENTIFIER.problem(key):
            raise InvalidField(f"keys.{i}", wrong)
    at_us = time.time_ns() // 1_000 if as_of_us is None else as_of_us
    if wrong := TIME.problem(at_us):
        raise InvalidField("as_of", wrong)
    return at_us


def _text(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
