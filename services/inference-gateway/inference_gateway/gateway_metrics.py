"""The gateway's metrics, `trine_gateway_*`. What is per request is counted a batch at a time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from prometheus_client import Counter, Histogram
from service_kit.logs import get_logger
from service_kit.metrics import Metrics

from inference_gateway.decision import Decision, Source
from inference_gateway.errors import GatewayError, InvalidRequest, PayloadConflict
from inference_gateway.recorder import Recorder

log = get_logger(__name__)

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SCORE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 1.0)
VERDICTS = {1: "approve", 2: "review", 3: "deny"}
_SOURCES = {s.value: s.name.lower() for s in Source}


class GatewayMetrics:
    """Made once a process."""

    def __init__(self, metrics: Metrics) -> None:
        self._counters: dict[tuple[str, int, int, str], list[Counter]] = {}
        self._by_release: dict[str, tuple[Histogram, Histogram]] = {}
        self._decisions = metrics.counter("decisions_total", "Transactions decided", ["source", "verdict", "release"])
        self._fallbacks = metrics.counter("fallbacks_total", "Transactions the model did not answer", ["reason"])
        self._rejected = metrics.counter("rejected_total", "Transactions without a decision", ["reason", "field"])
        self.repeated = metrics.counter("repeated_total", "Requests given the stored answer of an equal one")
        self.unrecorded = metrics.counter("unrecorded_total", "Transactions recorded neither in the spool nor in Kafka")
        self._latency = metrics.histogram("decision_seconds", "Arrival to reply, by request", ["release"])
        self._scores = metrics.histogram(
            "score_ratio", "Scores of what was decided", ["release"], buckets=SCORE_BUCKETS
        )
        self._stages = metrics.histogram("stage_seconds", "Time in a stage, by micro-batch", ["stage"])
        self.feature_stage = self._stages.labels("features")
        self.model_stage = self._stages.labels("model")
        self.record_stage = self._stages.labels("record")
        sizes = metrics.histogram("batch_rows", "Requests in a micro-batch", ["stage"], buckets=_SIZES)
        self.batch_requests = sizes.labels("features")
        self.model_rows = sizes.labels("model")
        self._lag = metrics.histogram(
            "feature_lag_seconds", "How far the worker's progress trailed, by micro-batch (its worst)",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
        )  # fmt: skip
        self._waiting = metrics.gauge("waiting_rows", "Requests that wait for a micro-batch")
        self._spool = metrics.gauge("spool_bytes", "Bytes in the spool that Kafka has not acknowledged in full")
        self._queued = metrics.gauge("kafka_queued_events", "Messages handed to the Kafka client, not acknowledged")
        self._backlog = metrics.gauge("kafka_backlog_state", "1 while Kafka is fed from files", across="max")
        self._delivered = metrics.counter("kafka_delivered_total", "Messages acknowledged by Kafka")
        self._refused = metrics.counter("kafka_refused_total", "Times Kafka refused a message for good")
        self._seen = (0, 0)
        self._info = metrics.gauge("release_info", "1 while in use, and as what", ["release", "role"], across="max")
        self._roles: dict[str, str] = {}

    def answered(self, decisions: Sequence[Decision]) -> None:
        """A batch was answered, by one release."""
        counts: dict[tuple[str, int, int, str], int] = {}
        lag_ms = 0
        release = decisions[0].release
        for d in decisions:
            kind = (release, d.source, d.verdict, d.reason)
            counts[kind] = counts.get(kind, 0) + 1
            lag_ms = max(lag_ms, d.lag_ms)
        seconds, scores = self._by_release.get(release) or self._make_histograms(release)
        _observe_all(seconds, [d.total_us / 1e6 for d in decisions])
        _observe_all(scores, [d.score for d in decisions])
        for kind, n in counts.items():
            for counter in self._counters.get(kind) or self._make_counters(kind):
                counter.inc(n)
        self.record_stage.observe(decisions[-1].record_us / 1e6)
        if lag_ms > 0:
            self._lag.observe(lag_ms / 1e3)

    def serve(self, roles: Mapping[str, str]) -> None:
        """These releases are in use now: by id current, canary or shadow."""
        for release, role in self._roles.items():
            self._info.labels(release, role).set(0)
        for release, role in roles.items():
            self._info.labels(release, role).set(1)
        self._roles = dict(roles)

    def _make_histograms(self, release: str) -> tuple[Histogram, Histogram]:
        found = self._by_release[release] = (self._latency.labels(release), self._scores.labels(release))
        return found

    def _make_counters(self, kind: tuple[str, int, int, str]) -> list[Counter]:
        release, source, verdict, reason = kind
        counters = [self._decisions.labels(_SOURCES[source], VERDICTS[verdict], release)]
        if reason:
            counters.append(self._fallbacks.labels(reason))
        self._counters[kind] = counters
        return counters

    def rejected(self, error: GatewayError) -> None:
        """A request got no decision."""
        if isinstance(error, InvalidRequest):
            reason = "invalid"
        else:
            reason = "conflict" if isinstance(error, PayloadConflict) else "unrecorded"
        self._rejected.labels(reason, error.field).inc()
        log.info("rejected", transaction_id=error.event_id, reason=reason, field=error.field, detail=error.message)

    def watch(self, recorder: Recorder, waiting: int) -> None:
        """Take the gauges' values; called about once a second."""
        self._waiting.set(waiting)
        self._spool.set(recorder.spool.waiting_bytes)
        self._queued.set(recorder.queued)
        self._backlog.set(recorder.backlog)
        delivered, refused = recorder.delivered_total, recorder.failed_total
        self._delivered.inc(delivered - self._seen[0])
        self._refused.inc(refused - self._seen[1])
        self._seen = (delivered, refused)


def _observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """`histogram.observe` for each value, at the price of one: a thousand of them would take milliseconds."""
    bounds, buckets = histogram._upper_bounds, histogram._buckets
    counts = [0] * len(bounds)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    histogram._sum.inc(sum(values))
    for bucket, count in zip(buckets, counts, strict=True):
        if count:
            bucket.inc(count)
