"""The last stage: a decision is recorded, remembered for repeats, and then answered.

Also for what could not go through the stages before (overload, features or model away, deadline): then the event is
recorded here, in the same write as its decision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from service_kit.logs import get_logger

from inference_gateway.decision import Decision, Source
from inference_gateway.errors import GatewayError, NotRecorded, SpoolError
from inference_gateway.gateway_metrics import GatewayMetrics
from inference_gateway.recorder import Group, Recorder
from inference_gateway.reply_memory import ReplyMemory
from inference_gateway.spool_format import Message
from inference_gateway.transaction_adapter import TransactionAdapter
from inference_gateway.work import Answer, Outcome, Work, by_serving

if TYPE_CHECKING:
    from inference_gateway.serving import Serving
    from inference_gateway.shadow import Shadow

EVENTS, DECISIONS = 0, 1
"""Index of each topic in the recorder's producer."""

_MAX_LAG_MS = 0xFFFF_FFFF
#: One decision of so many is told in the log; all of them are in Kafka.
_LOG_EVERY = 1_000

log = get_logger(__name__)


class Answering:
    """Owned by the event loop. `spawn` runs a coroutine that somebody awaits at the end."""

    def __init__(
        self,
        adapter: TransactionAdapter,
        recorder: Recorder,
        memory: ReplyMemory,
        metrics: GatewayMetrics,
        spawn: Callable[..., asyncio.Task[None]],
    ) -> None:
        self._adapter, self._recorder = adapter, recorder
        #: Is told of every decision once it was sent.
        self.shadow: Shadow | None = None
        self._memory, self._metrics, self._spawn = memory, metrics, spawn
        self._until_log = 0

    def by_model(self, works: Sequence[Work], scores: NDArray[np.float32]) -> None:
        """Answer by `scores` float32[n] of one release where nothing else has answered yet.

        Raises ValueError: not probabilities.
        """
        decided = works[0].serving.decider.by_model(scores)
        pairs = [(w, d) for w, d in zip(works, decided, strict=True) if not w.answered]
        if pairs:
            self._decide([w for w, _ in pairs], [d for _, d in pairs])

    def without_model(self, works: Iterable[Work], reason: str) -> None:
        """Answer by rules (and batch score) where nothing else has answered yet."""
        for serving, waiting in by_serving([w for w in works if not w.answered]):
            decider = serving.decider
            vectors, usable = decider.request_vectors([w.request.features for w in waiting])
            decisions, now_us = [], time.time_ns() // 1_000
            for i, w in enumerate(waiting):
                batch = serving.batch_score(w.request.features.keys, now_us)
                if w.vector is None or w.usable is None:
                    decisions.append(decider.without_model(vectors[i], usable, reason, batch))
                else:
                    decisions.append(decider.without_model(w.vector, w.usable, reason, batch))
            self._decide(waiting, decisions)

    def warm_up(self, serving: Serving) -> None:
        """Build a response and a record of nothing."""
        request, decider = self._adapter.example(), serving.decider
        decider.by_model(np.zeros(1, dtype=np.float32))
        vectors, usable = decider.request_vectors([request.features])
        decision = decider.without_model(vectors[0], usable, "")
        self._adapter.response(request, decision)
        self._adapter.record(request, decision)

    def answer_again(self, work: Work, answer: Answer) -> None:
        """An earlier, equal request has this answer."""
        if not work.answered:
            self._metrics.repeated.inc()
            self._reply(work, answer)

    def fail(self, work: Work, error: GatewayError) -> None:
        """No decision on this request."""
        if not work.answered:
            self._metrics.rejected(error)
            self._reply(work, error)

    def _decide(self, works: Sequence[Work], decisions: Sequence[Decision]) -> None:
        began = time.perf_counter()
        decided_at_us = time.time_ns() // 1_000
        messages: list[Message] = []
        record = self._adapter.record
        events, slow = False, False
        for w, d in zip(works, decisions, strict=True):
            w.answered = True
            d.decided_at_us = decided_at_us
            if w.usable is not None:
                d.vector, d.inputs = w.vector, w.inputs
            d.lag_ms = min(w.lag_ms, _MAX_LAG_MS)
            d.queue_us, d.features_us, d.model_us, d.record_us = w.queue_us, w.features_us, w.model_us, w.record_us
            d.total_us = int((began - w.arrived) * 1e6)
            r = w.request
            if w.group is not None:
                slow |= w.group.place is None
            elif w.unrecorded:
                slow = True
            else:
                events = True
                messages.append(Message(EVENTS, r.partition, r.kafka_key, r.event))
            messages.append(Message(DECISIONS, r.partition, r.kafka_key, record(r, d)))
        try:
            group = self._recorder.record(messages, reserved=not events)
        except SpoolError as error:
            self._unrecorded(works, decisions, str(error))
            return
        took_us = int((time.perf_counter() - began) * 1e6)
        if slow or group.place is None:
            self._spawn(self._reply_once_recorded(works, decisions, group, took_us))
        else:
            self._reply_all(works, decisions, took_us)

    async def _reply_once_recorded(
        self, works: Sequence[Work], decisions: Sequence[Decision], last: Group, took_us: int
    ) -> None:
        """The spool refused something: Kafka's word is needed, or the policy decides."""
        until = min(w.answer_by for w in works)
        groups = {id(w.group): w.group for w in works if w.group is not None}
        safe = not any(w.unrecorded for w in works)
        for group in (*groups.values(), last):
            safe = safe and await self._recorder.recorded(group, until - time.perf_counter())
        if safe:
            self._reply_all(works, decisions, took_us)
        else:
            self._unrecorded(works, decisions, "neither the spool nor Kafka took it in time")

    def _unrecorded(self, works: Sequence[Work], decisions: Sequence[Decision], reason: str) -> None:
        self._metrics.unrecorded.inc(len(works))
        if works[0].serving.decider.refuses_unrecorded:  # all are of one release
            for w in works:
                text = f"the transaction could not be recorded: {reason}"
                self._metrics.rejected(error := NotRecorded(text, "", w.request.features.event_id))
                self._reply(w, error)
        else:
            self._reply_all(works, decisions, 0)

    def _reply_all(self, works: Sequence[Work], decisions: Sequence[Decision], record_us: int) -> None:
        response = self._adapter.response
        now = time.perf_counter()
        answers = []
        for w, d in zip(works, decisions, strict=True):
            d.record_us += record_us
            d.total_us = int((now - w.arrived) * 1e6)
            answers.append(Answer(response(w.request, d), d.vector))
        self._memory.remember(works, answers)
        for w, answer in zip(works, answers, strict=True):
            self._reply(w, answer)
        if self.shadow is not None:
            self.shadow.answered(works, decisions)
        self._metrics.answered(decisions)
        self._until_log -= len(works)
        if self._until_log <= 0:
            self._until_log = _LOG_EVERY
            _log_one(works[-1], decisions[-1])

    def _reply(self, work: Work, outcome: Outcome) -> None:
        work.answered = True
        self._memory.leave(work)
        work.job.put(work.index, outcome)
        if work.followers is not None:
            again = outcome.again() if isinstance(outcome, Answer) else outcome
            for job, index in work.followers:
                job.put(index, again)
            work.followers = None
        # The deadline's wheel may hold this for a while; the rest is no longer needed.
        work.inputs, work.vector, work.usable, work.group = (), None, None, None


def _log_one(work: Work, d: Decision) -> None:
    log.info(
        "decided",
        transaction_id=work.request.features.event_id,
        verdict=d.verdict,
        score=d.score,
        source=Source(d.source).name.lower(),
        release=d.release,
        reason=d.reason,
        total_us=d.total_us,
        one_of=_LOG_EVERY,
    )
