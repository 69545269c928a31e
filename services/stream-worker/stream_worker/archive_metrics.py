"""What the role `archive` counts; names are `trine_worker_<what>_<unit>`, the other role's where they mean the same."""

from __future__ import annotations

from service_kit.metrics import Metrics

CHUNK_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class ArchiveMetrics:
    """Made once, at start; used by the threads of stage and compaction."""

    def __init__(self, metrics: Metrics) -> None:
        self.events = metrics.counter(
            "events_total", "Rows by source and what became of them: archived, refused", ["source", "outcome"]
        )
        self.dead_letters = metrics.counter("dead_letters_total", "Dead letters sent", ["reason"])
        self.restarts = metrics.counter("stage_restarts_total", "Stages that made their Kafka clients anew", ["stage"])
        self.files = metrics.counter("archive_files_total", "Files written to the warehouse", ["source", "by"])
        self.bytes = metrics.counter("archive_written_bytes_total", "Bytes of those files", ["source", "by"])
        self.removed = metrics.counter("archive_superseded_files_total", "Merged files that were removed", ["source"])
        self.chunk_seconds = metrics.histogram(
            "archive_chunk_seconds", "Time to write a chunk and commit its offsets", buckets=CHUNK_BUCKETS
        )
        self.pending_rows = metrics.gauge("archive_pending_rows", "Rows read and not yet in the warehouse")
        self.pending_bytes = metrics.gauge("archive_pending_bytes", "Their bytes in memory")
        self.lag = metrics.gauge(
            "archive_lag_events", "Log entries of this worker's partitions that are not in the warehouse", ["source"]
        )
        self.lost = metrics.counter(
            "archive_lost_events_total", "Log entries that Kafka dropped before they were archived", ["source"]
        )
        self.partitions = metrics.gauge("archive_partitions_info", "Partitions this worker archives", ["source"])
