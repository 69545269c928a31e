"""Follows the model's pointer, so that a promotion needs no restart; and reports what this process could serve.

Twice a second the pointer is read. Where it moved, the next request is decided by what it says now. While Redis is away
the pointer last seen holds, also over a restart: it is kept beside the spool. A release that the pointer names and this
process has not loaded is not served: the one before goes on, and health and report say why.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path

import redis
from feature_store.online import StoreMisconfigured, StoreUnavailable
from feature_store.state_views import StateViews
from model_release.release import Release
from model_release.rollout import Pointer, Sides
from model_release.rollout_store import GATEWAY, REPORT_EVERY_S, ProcessReport, RolloutStore
from service_kit.health import Health
from service_kit.logs import get_logger

from inference_gateway.batch_scores import BatchScores
from inference_gateway.feature_access import FeatureAccess
from inference_gateway.gateway_metrics import GatewayMetrics
from inference_gateway.model_server import ModelServerError
from inference_gateway.plans import Fitting
from inference_gateway.reading import Reading
from inference_gateway.scorer import Scorer
from inference_gateway.shadow import Shadow, Shadows
from inference_gateway.staged import StagedReleases

_PART = "rollout"
_CHECK_AGAIN_S = 30.0
"""A staged release was seen to answer; is it still?"""
_UNCHECKED = "the model server has not been asked for its golden rows yet"

log = get_logger(__name__)


class RolloutFollower:
    """Owned by the event loop; blocking calls go to threads. `name`: of this process, in its reports."""

    def __init__(
        self, name: str, pointer: Pointer, reading: Reading, access: FeatureAccess, staged: StagedReleases,
        store: RolloutStore, kept: Path, scorer: Scorer, batch_scores: BatchScores, shadows: Shadows, health: Health,
        metrics: GatewayMetrics, *, every_s: float,
    ) -> None:  # fmt: skip
        self._name, self._staged, self._store, self._kept = name, staged, store, kept
        self._reading, self._access = reading, access
        self._fitting = Fitting()
        self._state: StateViews | None = None
        self._scorer, self._servings, self._batch_scores, self._shadows = scorer, scorer.servings, batch_scores, shadows
        self._health, self._metrics, self._every_s = health, metrics, every_s
        self._shadow: Shadow | None = None
        self._closing: list[Shadow] = []
        self.pointer = pointer
        self._checks: dict[str, tuple[str, float]] = {}
        self._reported: tuple[ProcessReport | None, float] = (None, 0.0)
        self._as_told = True
        self._told: object = None

    def begin(self, current: Release) -> None:
        """Serve what the pointer says, before the first request; `current` is open."""
        keep_pointer(self._kept, self.pointer)
        self._use(current)

    async def follow(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._follow_pointer())
            both.create_task(self._follow_folder())

    async def _follow_pointer(self) -> None:
        while True:
            await self._look_at_pointer()
            await self._report()
            while self._closing:
                await self._closing.pop().close()
            await asyncio.sleep(self._every_s)

    async def _follow_folder(self) -> None:
        """Beside it, since a model server may take its time to answer."""
        while True:
            await self._look_at_folder()
            await asyncio.sleep(REPORT_EVERY_S)

    async def withdraw(self) -> None:
        """This process ends."""
        try:
            await asyncio.to_thread(self._store.withdraw, GATEWAY, self._name)
        except (redis.RedisError, OSError) as error:
            log.info("report not withdrawn, it expires", reason=str(error))

    # -- the folder

    async def _look_at_folder(self) -> None:
        try:
            await asyncio.to_thread(self._staged.look)
            await self._read_more()
        except (redis.RedisError, OSError, StoreUnavailable, StoreMisconfigured, ValueError) as error:
            log.info("not looked at what is staged", reason=str(error))
        for release in list(self._staged.opened.values()):
            if not self._in_use(release.id) and not self._unfit(release):
                await self._check(release)

    async def _check(self, release: Release) -> None:
        why, at = self._checks.get(release.id, ("", 0.0))
        if at and not why and time.monotonic() - at < _CHECK_AGAIN_S:
            return
        try:
            await self._scorer.server.check(release)
            why = ""
        except ModelServerError as error:
            why = f"the model server: {error}"
        self._checks[release.id] = (why, time.monotonic())

    def _unfit(self, release: Release) -> str:
        """Why a release that was opened cannot be served beside what is; an empty text where it can."""
        return self._fitting.why_not(release, self._reading.plan, self._state)

    async def _read_more(self) -> None:
        """Views of staged releases that the feature state has by now."""
        self._state = await asyncio.to_thread(self._store.state_views)
        opened = list(self._staged.opened.values())
        plan = self._fitting.grown(self._reading.plan, opened, self._state)
        if plan is not self._reading.plan and self._access.usable:
            self._servings.read_by(plan)
            if self._shadow is not None:
                self._shadow.read_by(plan)
            await self._reading.grow(plan, self._scorer.adapter, self._access)
        whole = self._state.whole
        needs = self._fitting.needs(self._servings.current.release)
        if whole is not None and (gone := sorted(n for n, found in needs.items() if whole.get(n) != found)):
            self._health.degrade("views", f"of the current release are not whole: {', '.join(gone)}; rebuild the state")
        else:
            self._health.restore("views")

    def _why_not(self, release: str) -> str:
        """Why this process could not serve it now; an empty text where it could."""
        if release in self._staged.refused:
            return self._staged.refused[release]
        if release not in self._staged.opened:
            return "it is not in this process's folder of releases"
        if unfit := self._unfit(self._staged.opened[release]):
            return unfit
        if self._in_use(release):
            serving = self._servings.current if release == self._servings.current.id else self._servings.canary
            return "" if serving is not None and serving.model.usable else "the model server does not answer for it"
        return self._checks.get(release, (_UNCHECKED, 0.0))[0]

    def _in_use(self, release: str) -> bool:
        canary = self._servings.canary
        return release == self._servings.current.id or (canary is not None and release == canary.id)

    # -- the pointer

    async def _look_at_pointer(self) -> None:
        try:
            found = await asyncio.to_thread(self._store.read, self.pointer.model)
            if found is None:
                # Redis was emptied: what serves goes on serving.
                found = await asyncio.to_thread(self._store.begin, self.pointer)
        except (redis.RedisError, OSError) as error:
            self._health.degrade(_PART, f"pointer not readable, generation {self.pointer.generation} holds: {error}")
            return
        except ValueError as error:
            self._health.degrade(_PART, f"{error}; generation {self.pointer.generation} holds")
            return
        if found != self.pointer:
            self.pointer, self._as_told = found, False
            await asyncio.to_thread(keep_pointer, self._kept, found)
        if not self._as_told:
            known = self._staged.opened.get(found.current)
            self._use(known if known is not None and not self._unfit(known) else self._servings.current.release)
        if self._as_told:
            self._health.restore(_PART)

    def _use(self, current: Release) -> None:
        in_use = [s for s in (self._servings.current, self._servings.canary) if s is not None]
        for serving in in_use:
            if serving.model.usable:  # seen to answer, should it be taken back soon
                self._checks[serving.id] = ("", time.monotonic())
        pointer = self.pointer
        opened = {**{s.id: s.release for s in in_use}, **self._staged.opened}
        canary, sides = None, None
        if pointer.canary is not None:
            found = opened.get(pointer.canary.release)
            if found is not None and found.id != current.id and not self._unfit(found):
                canary, sides = found, Sides(pointer.canary)
        shadow = self._use_shadow({current.id} | ({canary.id} if canary is not None else set()))
        roles = {current.id: "current"} | ({canary.id: "canary"} if canary is not None else {})
        unchecked = {release: self._checks.get(release, (_UNCHECKED, 0.0))[0] for release in roles}
        answering = [release for release in (current, canary) if release is not None]
        self._scorer.adapter.features |= {release.id: release.features for release in answering}
        self._batch_scores.want(release.manifest.policy.batch for release in answering)
        self._servings.use(self._reading.plan, current, canary, sides, unchecked)
        if shadow:
            roles[shadow] = "shadow"
        self._metrics.serve(roles)
        wanted = {pointer.current: "current"}
        if pointer.shadow:
            wanted[pointer.shadow] = "shadow"
        if pointer.canary is not None:
            wanted[pointer.canary.release] = "canary"
        self._as_told = roles == wanted
        if self._told != (told := (pointer, roles)):
            self._told = told
            log.info("releases in use", generation=pointer.generation, **{role: name for name, role in roles.items()})
        if not self._as_told:
            reasons = "; ".join(f"{r}: {self._why_not(r)}" for r in wanted if r not in roles)
            self._health.degrade(_PART, f"does not serve what the pointer says: {reasons}")

    def _use_shadow(self, answering: set[str]) -> str:
        """Have the pointer's shadow score along; its id, or an empty text where there is none here."""
        name = self.pointer.shadow
        release = self._staged.opened.get(name)
        if release is None or name in answering or self._unfit(release):
            name = ""
        if (self._shadow.id if self._shadow is not None else "") != name:
            if self._shadow is not None:
                self._closing.append(self._shadow)
            self._shadow = self._shadows.of(release, self._reading.plan) if name and release is not None else None
            self._scorer.shadow(self._shadow)
        return name

    # -- the report

    async def _report(self) -> None:
        known = sorted({*self._staged.opened, *self._staged.refused, *self.pointer.releases})
        needs: Mapping[str, Mapping[str, str]] = {
            name: self._fitting.needs(release) for name, release in self._staged.opened.items()
        }
        report = ProcessReport(
            GATEWAY, self._name, self.pointer.model, {name: self._why_not(name) for name in known},
            self.pointer.generation if self._as_told else 0, needs, {}, self._reading.since_us,
            tuple(entity.name for entity in self._reading.plan.entities), self._reading.shards,
        )  # fmt: skip
        before, at = self._reported
        now = time.monotonic()
        if report == before and now - at < REPORT_EVERY_S:
            return
        try:
            await asyncio.to_thread(self._store.report, report)
        except (redis.RedisError, OSError):
            return  # whoever reads the pointer has told of it
        self._reported = (report, now)


def first_pointer(store: RolloutStore, chosen: Release, kept: Path) -> tuple[Pointer, str]:
    """Where the pointer stands at the start, and where that was found: redis, file, or settings.

    Without one in Redis it is written there, to `chosen`; while Redis is away, what was seen last holds.
    """
    fresh = Pointer(chosen.manifest.model, chosen.id)
    last = kept_pointer(kept)
    if last is not None and (last.model != fresh.model or not (chosen.path.parent / last.current).is_dir()):
        last = None
    try:
        return store.begin(last or fresh), "redis"
    except (redis.RedisError, OSError, ValueError) as error:
        log.warning("the pointer cannot be read", reason=str(error), goes_by="file" if last else "settings")
    return (last, "file") if last is not None else (fresh, "settings")


def keep_pointer(file: Path, pointer: Pointer) -> None:
    """For a start while Redis is away; that it cannot be written stops nothing."""
    try:
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(pointer.to_json())
        scratch.replace(file)
    except OSError as error:
        log.warning("the pointer could not be kept", file=str(file), reason=str(error))


def kept_pointer(file: Path) -> Pointer | None:
    try:
        return Pointer.from_json(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        return None
