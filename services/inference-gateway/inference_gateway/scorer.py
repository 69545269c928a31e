"""The core without transports: requests in, answers out, in time whatever is slow or away.

submit ─► FeatureStage ─► ModelStage ─► Answering ─► Job.done
  │ repeats, overload        │ deadline: DeadlineWheel answers what is still open
  └──────────────────────────┴──────────► Answering.without_model
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from feature_store.online import StoreUnavailable
from model_release.release import Release
from service_kit.health import Health
from service_kit.logs import get_logger

from inference_gateway.answering import Answering
from inference_gateway.batch_scores import BatchScores
from inference_gateway.deadline import DeadlinePolicy, DeadlineWheel
from inference_gateway.decision import Reason, Request
from inference_gateway.errors import GatewayError
from inference_gateway.feature_access import FeatureAccess
from inference_gateway.feature_stage import FeatureStage, conflict
from inference_gateway.gateway_metrics import GatewayMetrics
from inference_gateway.model_server import ModelServer
from inference_gateway.model_stage import ModelStage
from inference_gateway.recorder import Recorder
from inference_gateway.reply_memory import ReplyMemory
from inference_gateway.serving import MakeStage, Servings
from inference_gateway.settings import Tuning
from inference_gateway.shadow import Shadow
from inference_gateway.transaction_adapter import TransactionAdapter
from inference_gateway.work import Job, Work

log = get_logger(__name__)


class Scorer:
    """Owned by the event loop; `drain` ends it."""

    def __init__(
        self,
        adapter: TransactionAdapter,
        access: FeatureAccess,
        server: ModelServer,
        recorder: Recorder,
        health: Health,
        metrics: GatewayMetrics,
        deadlines: DeadlinePolicy,
        tuning: Tuning,
        batch_scores: BatchScores | None = None,
    ) -> None:
        self.adapter = adapter
        self._deadlines, self._max_waiting, self._max_batch = deadlines, tuning.max_waiting, tuning.max_batch
        self._access, self._recorder, self._metrics, self._health = access, recorder, metrics, health
        self._tasks: set[asyncio.Task[None]] = set()
        self._turned_away: list[Work] = []
        self.server = server
        self._memory = ReplyMemory(access)
        self._answering = Answering(adapter, recorder, self._memory, metrics, self._spawn)
        #: What answers; to be told by `use` before the first request.
        self.servings = Servings(self._stage(health, tuning), health, batch_scores)
        self._features = FeatureStage(
            access, recorder, self.servings, self._answering, metrics, self._spawn,
            lanes=tuning.feature_lanes, max_requests=tuning.max_batch,
        )  # fmt: skip
        self._wheel: DeadlineWheel[Work] = DeadlineWheel(self._overdue)

    def submit(
        self, requests: Sequence[Request | GatewayError], remaining_s: float | None, *, patient: bool = False
    ) -> Job:
        """Start deciding. `remaining_s`: until the client's deadline, None where it has set none.

        `patient`: the caller has waited in `room_for`, so that there is no overload for it.

        What is an error already stays one. The job is done when every request has its outcome.
        """
        job = Job(len(requests))
        now = time.perf_counter()
        answer_by = now + self._deadlines.answer_within(remaining_s, self._wheel.lag_s)
        room = self._max_waiting - len(self._features)
        fresh: list[Work] = []
        of = self.servings.of
        for index, request in enumerate(requests):
            if isinstance(request, GatewayError):
                self._metrics.rejected(request)
                job.put(index, request)
                continue
            work = Work(request, of(request.kafka_key), job, index, now, answer_by)
            if not self._is_repeat(work):
                self._memory.enter(work)
                fresh.append(work)
        if not fresh:
            return job
        if len(fresh) > room and not patient:
            self._turn_away(fresh[max(room, 0) :])
            fresh = fresh[: max(room, 0)]
        for work in fresh:
            self._wheel.add(work, answer_by)
        self._features.add(fresh)
        return job

    def shadow(self, shadow: Shadow | None) -> None:
        """Tell it of every decision from now on; None: nobody."""
        self._answering.shadow = shadow

    @property
    def overloaded(self) -> bool:
        """More waits than one batch takes."""
        return len(self._features) > self._max_batch

    async def room_for(self, count: int) -> None:
        """Wait until `count` more requests fit; for callers that would rather wait than get a fallback."""
        while len(self._features) + count > max(self._max_waiting // 2, count):
            await self._features.moved()

    async def warm_up(self) -> None:
        """Do once what every request does, without recording anything: the first one is as quick as the others."""
        try:
            await self._access.warm_up()
        except StoreUnavailable as error:
            log.warning("not warmed up", reason=str(error))
        self._answering.warm_up(self.servings.current)

    async def drain(self) -> None:
        """Until all that was submitted is answered and remembered."""
        await self._features.idle()
        await self.servings.idle()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._memory.idle()

    async def close(self) -> None:
        await self.servings.close()
        await self.server.close()

    async def watch(self) -> None:
        """Feed gauges and health, for ever."""
        while True:
            self._metrics.watch(self._recorder, len(self._features))
            if self._recorder.down is not None:
                self._health.degrade("kafka", "cannot be reached; events wait in the spool")
            elif not self._recorder.backlog:
                self._health.restore("kafka")
            self._recorder.try_again()
            if self._recorder.refusing is None:
                self._health.unblock("recording")
                self._health.restore("recording")
            elif self.servings.current.decider.refuses_unrecorded:
                self._health.block("recording", self._recorder.refusing)
            else:
                self._health.degrade("recording", self._recorder.refusing)
            await self.servings.tidy()
            await asyncio.sleep(0.5)

    def _stage(self, health: Health, tuning: Tuning) -> MakeStage:
        def make(release: Release, part: str, unchecked: str | None) -> ModelStage:
            return ModelStage(
                self.server, release, self._answering, health, self._metrics,
                lanes=tuning.model_lanes, max_rows=tuning.max_batch, min_s=self._deadlines.model_min_s,
                part=part, unchecked=unchecked,
            )  # fmt: skip

        return make

    def _turn_away(self, works: list[Work]) -> None:
        """Overload: answered by the fallback, all of one turn of the loop in one write."""
        if not self._turned_away:
            asyncio.get_running_loop().call_soon(self._answer_turned_away)
        self._turned_away += works

    def _answer_turned_away(self) -> None:
        works, self._turned_away = self._turned_away, []
        self._answering.without_model(works, Reason.OVERLOAD)

    def _is_repeat(self, work: Work) -> bool:
        """Deal with a request whose id is known to this process."""
        features = work.request.features
        first = self._memory.deciding(features.event_id)
        if first is not None:
            if first.request.features.fingerprint != features.fingerprint:
                self._answering.fail(work, conflict(work))
            else:
                if first.followers is None:
                    first.followers = []
                first.followers.append((work.job, work.index))
                self._metrics.repeated.inc()
            return True
        known = self._memory.answered(features.event_id)
        if known is None:
            return False
        fingerprint, answer = known
        if fingerprint != features.fingerprint:
            self._answering.fail(work, conflict(work))
        else:
            self._answering.answer_again(work, answer.again())
        return True

    def _overdue(self, works: list[Work]) -> None:
        self._answering.without_model(works, Reason.DEADLINE)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the scorer failed", exc_info=error)
