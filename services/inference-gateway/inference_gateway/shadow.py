"""A release that scores what others have answered: compared in metrics, recorded on a topic of its own, never answered.

It is offered decisions once their replies are on their way. One call to the model server at a time, and few may wait;
what comes while it is behind, or while this process has more to do than it can, is not scored and counted as such.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from confluent_kafka import KafkaError
from confluent_kafka import Message as KafkaMessage
from feature_store.definitions import FeaturePlan
from feature_store.online import ViewRead
from feature_store.plan_union import Part, part_of
from model_release.release import Release
from numpy.typing import NDArray
from prometheus_client import Counter
from service_kit.logs import get_logger
from service_kit.metrics import Metrics

from inference_gateway.batcher import Batcher
from inference_gateway.decision import Decider, Decision, Request
from inference_gateway.gateway_metrics import SCORE_BUCKETS, VERDICTS
from inference_gateway.kafka_producer import KafkaProducer, Topic
from inference_gateway.model_server import ModelServer, ModelServerError
from inference_gateway.spool_format import Message
from inference_gateway.transaction_adapter import DECISION_MESSAGE, TransactionAdapter
from inference_gateway.work import Work

SHADOW_TOPIC = "trine.shadow-decisions"
_TIMEOUT_S = 2.0
_QUEUE_BYTES = 8 << 20
_PAUSE_S = 1.0
"""After a failure: a server that is away is not asked on every decision."""

log = get_logger(__name__)


class ShadowMetrics:
    """Made once a process."""

    def __init__(self, metrics: Metrics) -> None:
        self.decisions = metrics.counter(
            "shadow_decisions_total", "Decisions of a shadow, and what was answered", ["release", "verdict", "answered"]
        )
        self.missed = metrics.counter("shadow_missed_total", "Decisions that the shadow did not score", ["reason"])
        buckets = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
        self.difference = metrics.histogram(
            "shadow_difference_ratio", "How far a shadow's score is from the answered one", ["release"], buckets=buckets
        )
        self.scores = metrics.histogram("shadow_score_ratio", "Scores of a shadow", ["release"], buckets=SCORE_BUCKETS)


class _Item(NamedTuple):
    request: Request
    row: NDArray[np.float32]
    inputs: Sequence[ViewRead]
    answered: Decision


class Shadow:
    """Owned by the event loop. `busy`: whether this process has better things to do."""

    def __init__(
        self, release: Release, plan: FeaturePlan, server: ModelServer, adapter: TransactionAdapter,
        producer: KafkaProducer, metrics: ShadowMetrics, busy: Callable[[], bool], *, max_rows: int,
    ) -> None:  # fmt: skip
        self.id, self._release, self._server, self._adapter = release.id, release, server, adapter
        self._producer, self._metrics, self._busy, self._max_waiting = producer, metrics, busy, 4 * max_rows
        self._decider = Decider(release)
        self._parts: dict[str, Part | None] = {}
        self.read_by(plan)
        self._batcher: Batcher[_Item] = Batcher(self._score, lanes=1, max_items=max_rows)
        self._again_at = 0.0
        self._counters: dict[tuple[int, int], Counter] = {}
        self._difference = metrics.difference.labels(release.id)
        self._scores = metrics.scores.labels(release.id)

    def read_by(self, plan: FeaturePlan) -> None:
        """Features may be read by `plan` from now on. Raises DefinitionError where its own are not a part of it."""
        self._parts[plan.fingerprint] = part_of(self._release.plan, plan)

    def answered(self, works: Sequence[Work], decisions: Sequence[Decision]) -> None:
        """These decisions have been sent. Takes what was read for them; never waits."""
        reason = "busy" if self._busy() else ""
        if len(self._batcher) > self._max_waiting:
            reason = "behind"
        elif time.monotonic() < self._again_at:
            reason = "model_down"
        if reason:
            self._metrics.missed.labels(reason).inc(len(works))
            return
        items = []
        for w, d in zip(works, decisions, strict=True):
            if w.read is None or w.read.plan not in self._parts:
                self._metrics.missed.labels("features").inc()
                continue
            row, usable, inputs, plan = w.read
            if (part := self._parts[plan]) is not None:
                row, usable, inputs = row[part.columns], usable[part.columns], [inputs[v] for v in part.views]
            if usable.all():
                items.append(_Item(w.request, row, inputs, d))
            else:
                self._metrics.missed.labels("features").inc()
        if items:
            self._batcher.add(items)

    async def close(self) -> None:
        """What is under way is finished."""
        await self._batcher.idle()

    async def _score(self, items: list[_Item]) -> None:
        rows = np.stack([item.row for item in items])
        try:
            scores = await self._server.score(self.id, rows, _TIMEOUT_S)
            decisions = self._decider.by_model(scores)
        except (ModelServerError, ValueError) as error:
            self._again_at = time.monotonic() + _PAUSE_S
            self._metrics.missed.labels("model_down").inc(len(items))
            log.warning("shadow not scored", release=self.id, decisions=len(items), reason=str(error))
            return
        now_us = time.time_ns() // 1_000
        for item, d in zip(items, decisions, strict=True):
            d.vector, d.inputs, d.lag_ms, d.decided_at_us = item.row, item.inputs, item.answered.lag_ms, now_us
            r = item.request
            sent = self._producer.send(
                Message(0, r.partition, r.kafka_key, self._adapter.record(r, d)), self._delivered
            )
            if not sent:
                self._metrics.missed.labels("not_recorded").inc()
            self._compare(d, item.answered)
        self._producer.poll()

    def _compare(self, d: Decision, answered: Decision) -> None:
        pair = (d.verdict, answered.verdict)
        if pair not in self._counters:
            names = VERDICTS[d.verdict], VERDICTS[answered.verdict]
            self._counters[pair] = self._metrics.decisions.labels(self.id, *names)
        self._counters[pair].inc()
        self._difference.observe(abs(d.score - answered.score))
        self._scores.observe(d.score)

    def _delivered(self, error: KafkaError | None, message: KafkaMessage) -> None:
        if error is not None:
            self._metrics.missed.labels("not_recorded").inc()


class Shadows:
    """Makes shadows, all of which record through one producer; there is none before the first."""

    def __init__(
        self, kafka: Mapping[str, str], server: ModelServer, adapter: TransactionAdapter, metrics: Metrics,
        busy: Callable[[], bool], *, max_rows: int,
    ) -> None:  # fmt: skip
        self._kafka, self._server, self._adapter, self._busy = kafka, server, adapter, busy
        self._metrics, self._max_rows = ShadowMetrics(metrics), max_rows
        self._producer: KafkaProducer | None = None
        self._last: Shadow | None = None

    def of(self, release: Release, plan: FeaturePlan) -> Shadow:
        """A shadow of `release`, whose features are read as part of `plan`."""
        if self._producer is None:
            topics = [Topic(SHADOW_TOPIC, DECISION_MESSAGE)]
            self._producer = KafkaProducer(self._kafka, topics, linger_ms=200, queue_bytes=_QUEUE_BYTES)
        self._last = Shadow(
            release, plan, self._server, self._adapter, self._producer, self._metrics, self._busy,
            max_rows=self._max_rows,
        )  # fmt: skip
        return self._last

    async def close(self) -> None:
        """What is under way is finished and sent, as far as that goes in a moment."""
        if self._last is not None:
            await self._last.close()
        if self._producer is not None and (left := await asyncio.to_thread(self._producer.flush, 1.0)):
            log.warning("decisions of the shadow were not sent", count=left)
