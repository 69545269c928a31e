"""Everything this worker counts; names are `trine_worker_<what>_<unit>`."""

from __future__ import annotations

import contextlib

from service_kit.metrics import Metrics

BATCH_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class WorkerMetrics:
    """Made once, at start; used by the threads of both stages."""

    def __init__(self, metrics: Metrics) -> None:
        self.events = metrics.counter(
            "events_total",
            "Rows by source and what became of them: absorbed, duplicate, rekeyed, refused",
            ["source", "outcome"],
        )
        self.batch_seconds = metrics.histogram("batch_seconds", "Time of a micro-batch", ["stage"], BATCH_BUCKETS)
        self.dead_letters = metrics.counter("dead_letters_total", "Dead letters sent", ["reason"])
        self.refused_writes = metrics.counter(
            "refused_writes_total",
            "Writes that Redis refused: fenced (another owns the shard), moved (go on elsewhere)",
            ["status"],
        )
        self.claims = metrics.counter("claims_total", "Shards claimed in Redis", ["entity"])
        self.aborts = metrics.counter("rekey_aborts_total", "Kafka transactions that were aborted and done again")
        self.restarts = metrics.counter("stage_restarts_total", "Stages that made their Kafka clients anew", ["stage"])
        self.shards = metrics.gauge("owned_shards_info", "Shards this worker writes", ["entity"])
        self.lag_events = metrics.gauge("shard_lag_events", "Log entries not absorbed yet", ["entity", "shard"])
        self.lag_seconds = metrics.gauge(
            "shard_lag_seconds",
            "Age of the newest moment before which everything is absorbed",
            ["entity", "shard"],
            across="max",
        )
        self.rekey_lag = metrics.gauge(
            "rekey_lag_events", "Source log entries of all workers not re-keyed yet", across="max"
        )

    def forget_shard(self, entity: str, shard: int) -> None:
        """The shard's lag is another worker's to tell."""
        for gauge in (self.lag_events, self.lag_seconds):
            with contextlib.suppress(KeyError):
                gauge.remove(entity, str(shard))
