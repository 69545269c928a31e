"""What the feature-store service measures, besides answering: lag of the state, dead letters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from service_kit.metrics import Metrics

from feature_store.service.errors import FeatureServiceError, InvalidField, StateUnavailable, UnknownView
from feature_store.service.freshness import ShardFreshness

_OUTCOMES: dict[type[FeatureServiceError], str] = {
    InvalidField: "invalid",
    UnknownView: "unknown_view",
    StateUnavailable: "unavailable",
}


class ServiceMetrics:
    """One per process."""

    def __init__(self, metrics: Metrics) -> None:
        self.dead_letters = metrics.gauge("dead_letters_events", "Dead letters so far", ["reason"], across="max")
        self._requests = metrics.counter("requests_total", "Requests answered", ["method", "outcome"])
        self._seconds = metrics.histogram("request_seconds", "Time to answer", ["method"])
        self._lag = metrics.gauge("state_lag_seconds", "Lag of an entity's worst shard", ["entity"], across="max")
        self._behind = metrics.gauge("log_behind_offsets", "Log entries not absorbed", ["entity"], across="max")
        self._lost = metrics.gauge("shards_lost_state", "Shards without state", ["entity"], across="max")

    @contextmanager
    def observed(self, method: str) -> Iterator[None]:
        """Counts and times what runs within, by how it ended."""
        began, outcome = time.perf_counter(), "failed"
        try:
            yield
            outcome = "ok"
        except FeatureServiceError as error:
            outcome = _OUTCOMES[type(error)]
            raise
        finally:
            self._requests.labels(method, outcome).inc()
            self._seconds.labels(method).observe(time.perf_counter() - began)

    def show(self, shards: Sequence[ShardFreshness]) -> None:
        """The newest figures of every shard."""
        for entity in {s.entity for s in shards}:
            own = [s for s in shards if s.entity == entity]
            self._lag.labels(entity).set(max(s.lag_ms for s in own) / 1_000)
            self._behind.labels(entity).set(sum(s.behind for s in own))
            self._lost.labels(entity).set(sum(s.lag_ms < 0 for s in own))
