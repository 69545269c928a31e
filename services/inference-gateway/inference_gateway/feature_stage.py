"""The first stage: a batch of events is written down; then one round trip has it judged, appended and read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
from feature_store.online import BatchRead, StoreUnavailable
from feature_store.online import Outcome as Judged
from service_kit.logs import get_logger

from inference_gateway.answering import EVENTS, Answering
from inference_gateway.batcher import Batcher
from inference_gateway.decision import Reason
from inference_gateway.errors import InvalidRequest, NotRecorded, PayloadConflict, SpoolError
from inference_gateway.feature_access import FeatureAccess
from inference_gateway.gateway_metrics import GatewayMetrics
from inference_gateway.recorder import Group, Recorder
from inference_gateway.reply_memory import unpack
from inference_gateway.serving import Servings
from inference_gateway.spool_format import Message
from inference_gateway.work import Read, Work

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.02
#: An answer of the first request is waited for until this long before the deadline.
_MARGIN_S = 0.002

log = get_logger(__name__)


class FeatureStage:
    """Owned by the event loop."""

    def __init__(
        self,
        access: FeatureAccess,
        recorder: Recorder,
        servings: Servings,
        answering: Answering,
        metrics: GatewayMetrics,
        spawn: Callable[..., asyncio.Task[None]],
        *,
        lanes: int,
        max_requests: int,
    ) -> None:
        self._access, self._recorder, self._servings, self._answering = access, recorder, servings, answering
        self._metrics, self._spawn = metrics, spawn
        # While a batch waits for the model, reading one more would only make it two small ones.
        self._batcher: Batcher[Work] = Batcher(
            self._run, lanes=lanes, max_items=max_requests, held=lambda: servings.waiting > 0, together=True
        )
        servings.on_taken(self._batcher.look)

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._batcher)

    def add(self, works: Sequence[Work]) -> None:
        self._batcher.add(works)

    async def moved(self) -> None:
        """Until a batch has ended."""
        await self._batcher.moved()

    async def idle(self) -> None:
        await self._batcher.idle()

    async def _run(self, gathered: list[Work]) -> None:
        began = time.perf_counter()
        works = [w for w in gathered if not w.answered]
        if not works:
            return
        for w in works:
            w.queue_us = int((began - w.arrived) * 1e6)
        self._metrics.batch_requests.observe(len(works))
        if not self._access.usable:
            self._answering.without_model(works, Reason.FEATURES_DOWN)
            return
        group = self._write(works)
        if group is None and not (works := [w for w in works if not w.answered]):
            return
        written = time.perf_counter()
        void: list[int] = []
        store = self._access.store
        try:
            read = await store.read_and_append([w.request.features for w in works])
        except StoreUnavailable as error:
            self._access.failed(str(error))
            self._settle(group)
            self._answering.without_model(works, Reason.FEATURES_DOWN)
            return
        except BaseException:
            self._settle(group)
            raise
        done = time.perf_counter()
        for what in read.damaged:
            log.error("feature state is damaged, rebuild it", entity=what)
        self._metrics.feature_stage.observe(done - written)
        record_us, features_us = int((written - began) * 1e6), int((done - written) * 1e6)
        for w in works:
            w.record_us, w.features_us = record_us, features_us
        whole, lost = self._sort(works, read, store.plan.fingerprint, void)
        if whole:
            self._servings.ask(whole)
        # After the call to the model is on its way: Kafka is in no hurry.
        self._settle(group, void)
        if lost:
            self._answering.without_model(lost, Reason.FEATURES_LOST)

    def _write(self, works: Sequence[Work]) -> Group | None:
        """The events into the spool, not to be sent before the ledger has judged them; None: recorded nowhere."""
        messages = [Message(EVENTS, w.request.partition, w.request.kafka_key, w.request.event) for w in works]
        try:
            group = self._recorder.record(messages, held=True)
        except SpoolError as error:
            for w in works:
                w.unrecorded = True
                if w.serving.decider.refuses_unrecorded:
                    self._metrics.unrecorded.inc()
                    self._answering.fail(
                        w,
                        NotRecorded(f"the transaction could not be recorded: {error}", "", w.request.features.event_id),
                    )
            return None
        for w in works:
            w.group = group
        return group

    def _settle(self, group: Group | None, void: Sequence[int] = ()) -> None:
        if group is not None:
            self._recorder.settle(group, void)

    def _sort(
        self, works: Sequence[Work], read: BatchRead, plan: str, void: list[int]
    ) -> tuple[list[Work], list[Work]]:
        """Deal with what the ledger says; returns new requests with whole vectors, and those with lost features.

        `plan`: fingerprint of the plan that was read.
        """
        whole: list[Work] = []
        lost: list[Work] = []
        vectors, usable, lags = read.vectors, read.usable.tolist(), read.lag_ms.tolist()
        shadowed = self._answering.shadow is not None
        for i, w in enumerate(works):
            outcome = read.outcomes[i]
            if outcome is Judged.NEW:
                w.lag_ms = lags[i]
                w.vector, w.usable, w.inputs = vectors[i], read.feature_usable[i], read.inputs[i]
                whole_vector = usable[i]
                if shadowed:
                    w.read = Read(w.vector, w.usable, w.inputs, plan)
                if (part := w.serving.parts[plan]) is not None:
                    w.vector, w.usable = vectors[i][part.columns], w.usable[part.columns]
                    w.inputs = [read.inputs[i][v] for v in part.views]
                    whole_vector = bool(w.usable.all())
                if whole_vector:
                    whole.append(w)
                else:
                    w.vector = np.where(w.usable, w.vector, np.float32("nan"))
                    lost.append(w)
                continue
            # Answered meanwhile, by rules at its deadline: that decision stands on this event, which must go out. (The
            # ledger may know that very answer already and call the event a repeat.)
            if not w.answered:
                void.append(i)
            self._not_new(w, outcome, read.replies[i], read.clock_us[i])
        return whole, lost

    def _not_new(self, w: Work, outcome: Judged, reply: bytes | None, clock_us: int) -> None:
        if w.answered:
            return
        if outcome is Judged.REPEATED and reply is not None:
            self._answering.answer_again(w, unpack(reply))
        elif outcome is Judged.PENDING:
            # The event of the first one is recorded by whoever decides it.
            w.group = None
            self._spawn(self._wait_for_first(w))
        elif outcome is Judged.CONFLICT:
            self._answering.fail(w, conflict(w))
        else:
            side = "behind" if outcome is Judged.LATE else "ahead of"
            self._answering.fail(
                w,
                InvalidRequest(
                    "event_time",
                    f"is {w.request.features.time_us} us since 1970, too far {side} the stream's own time,"
                    f" which is {clock_us} us",
                    w.request.features.event_id,
                ),
            )

    async def _wait_for_first(self, w: Work) -> None:
        """An equal request is being decided by another process: its answer is this one's too."""
        pause_s = _FIRST_PAUSE_S
        features = w.request.features
        while not w.answered and self._access.usable and w.answer_by - time.perf_counter() > pause_s + _MARGIN_S:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
            try:
                outcome, reply = await self._access.store.recall(features.event_id, features.fingerprint)
            except StoreUnavailable as error:
                self._access.failed(str(error))
                break
            if outcome is Judged.NEW:
                # Its lease ran out (that process died): this one decides.
                self.add([w])
                return
            if outcome is not Judged.PENDING:
                self._not_new(w, outcome, reply, -1)
                return
        # Else the deadline's wheel answers.


def conflict(w: Work) -> PayloadConflict:
    event_id = w.request.features.event_id
    return PayloadConflict(
        f"{event_id!r} was used before with another payload; an id names one event for ever", "", event_id
    )
