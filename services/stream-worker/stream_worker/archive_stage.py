"""The archive stage: topics → Parquet files in the warehouse, every event there exactly once for its reader.

A partition is read from its committed offset, below which everything is in the warehouse; a chunk's files are written,
each visible when whole, and then the offset behind it is committed. So a worker that dies, or is taken for dead and
wakes, at worst leaves files whose offsets are read and written once more: same rows, ranges in their names, and the
reader takes every offset from one of them. Nobody needs to be kept from writing. See docs/warehouse.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from feature_store.warehouse_store import WarehouseStore
from service_kit.health import Health
from service_kit.logs import get_logger

from stream_worker import dead_letters, kafka
from stream_worker.archive_chunk import Chunk, TopicLog, chunk_files, empty_marks
from stream_worker.archive_columns import rows_of
from stream_worker.archive_metrics import ArchiveMetrics
from stream_worker.archive_topics import ArchivedTopic
from stream_worker.consumed import NOWHERE, Consumed, sort_out
from stream_worker.dead_letters import letters_of
from stream_worker.intake import Messages
from stream_worker.settings import WorkerSettings
from stream_worker.shards import ShardKey

log = get_logger(__name__)

GROUP = "archive"
MESSAGES = 10_000
"""Taken from librdkafka at a time: they are Python objects until they are columns."""
WAIT_S = 0.5
BEATS = 10
"""The worker's heartbeats between two looks at topics and lag."""
RETRY_S = 1.0
LONGEST_RETRY_S = 30.0


class WarehouseRefuses(Exception):
    """A file could not be written; the text says which and why."""


class TopicsChanged(Exception):
    """An archived topic came, went or was made anew while its events were in memory; they are read again."""


class ArchiveStage:
    """One consumer of every archived topic. `run` is a thread's body; `owns` may be asked by others."""

    def __init__(
        self,
        settings: WorkerSettings,
        topics: Sequence[ArchivedTopic],
        store: WarehouseStore,
        admin: AdminClient,
        metrics: ArchiveMetrics,
        health: Health,
    ) -> None:
        self._settings, self._store, self._admin = settings, store, admin
        self._topics = {t.topic: t for t in topics}
        self._metrics, self._health = metrics, health
        self._logs: dict[str, TopicLog] = {}
        self._reads: dict[str, np.ndarray] = {}
        self._uncommitted: dict[ShardKey, int] = {}
        self._failures = 0

    def owns(self, topic: str) -> bool:
        """Whether this worker has the topic's first partition: that one looks after its files."""
        reads = self._reads.get(topic)
        return reads is not None and bool(reads[0] != NOWHERE)

    def run(self, stop: threading.Event) -> None:
        """Archive until `stop`, then write what was read, commit and leave the group."""
        self._health.block("archive", "has not joined its consumer group yet")
        while not stop.is_set():
            try:
                self._session(stop)
            except WarehouseRefuses as error:
                self._failures += 1
                self._health.degrade("warehouse", str(error))
                self._again(stop, error)
            except (KafkaException, TopicsChanged) as error:
                self._again(stop, error)

    def _again(self, stop: threading.Event, error: Exception) -> None:
        log.error("archive stage starts anew", reason=str(error))
        self._metrics.restarts.labels("archive").inc()
        stop.wait(min(RETRY_S * 2 ** min(self._failures, 4), LONGEST_RETRY_S))

    def _session(self, stop: threading.Event) -> None:
        """One life of the Kafka clients. Ends where topics come, go or are made anew."""
        self._logs = self._described()
        if not self._logs:
            stop.wait(RETRY_S)
            return
        settings = self._settings
        self._chunk = Chunk(settings.archive_rows, settings.archive_bytes, settings.archive_age_s)
        self._reads = {log.topic: np.full(log.partitions, NOWHERE, dtype=np.int64) for log in self._logs.values()}
        self._uncommitted = {}
        self._letters = Producer(kafka.producer_config(settings))
        consumer = self._consumer = Consumer(kafka.archive_consumer_config(settings, GROUP))
        self._leaving = False
        beat_due = time.monotonic() + BEATS * settings.heartbeat_s
        try:
            consumer.subscribe(
                list(self._logs), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not stop.is_set():
                self._take(consumer.consume(min(MESSAGES, settings.archive_rows), WAIT_S))
                now = time.monotonic()
                if self._chunk.due(now):
                    self._write()
                if now >= beat_due:
                    beat_due = now + BEATS * settings.heartbeat_s
                    self._beat()
                    if self._described() != self._logs:
                        log.info("archived topics changed")
                        return
            self._write()
            self._commit()
        finally:
            self._leaving = True
            consumer.close()
            self._reads = {}

    def _described(self) -> dict[str, TopicLog]:
        """Those of the archived topics that exist. Raises KafkaException."""
        found, missing = kafka.described(self._admin, list(self._topics))
        if missing:
            self._health.degrade("topics", f"topics that do not exist: {', '.join(missing)}")
        else:
            self._health.restore("topics")
        return {topic: TopicLog(topic, topic_id, count) for topic, (topic_id, count) in found.items()}

    # -- membership; called by `consume`

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._health.unblock("archive")
        if partitions:
            consumer.incremental_assign(self._from_committed(partitions))
        self._count_partitions()

    def _from_committed(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        out = []
        asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
        for tp in self._consumer.committed(asked, timeout=10.0):
            if tp.error is not None:
                raise KafkaException(tp.error)
            # An offset of another life of the topic says nothing.
            known = tp.offset >= 0 and tp.metadata == self._logs[tp.topic].topic_id
            self._reads[tp.topic][tp.partition] = tp.offset if known else 0
            if known:
                self._chunk.of(tp.topic).reached(tp.partition, tp.offset, tp.offset)
            out.append(TopicPartition(tp.topic, tp.partition, tp.offset if known else OFFSET_BEGINNING))
        return out

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Still ours: what was read is written rather than read again by whoever gets them.
        if not self._leaving:
            try:
                self._write()
                self._commit()
            except (WarehouseRefuses, TopicsChanged, KafkaException) as error:
                log.warning("not written before partitions were given away", reason=str(error))
        self._on_lost(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        by_topic: dict[str, list[int]] = {}
        for tp in partitions:
            by_topic.setdefault(tp.topic, []).append(tp.partition)
            self._reads[tp.topic][tp.partition] = NOWHERE
            self._uncommitted.pop((tp.topic, tp.partition), None)
        for topic, gone in by_topic.items():
            self._chunk.drop(topic, gone)
        if partitions and not self._leaving:
            consumer.incremental_unassign(partitions)
        self._count_partitions()

    def _count_partitions(self) -> None:
        for topic, reads in self._reads.items():
            self._metrics.partitions.labels(self._topics[topic].folder).set(int((reads != NOWHERE).sum()))

    # -- reading

    def _take(self, found: Sequence[Message]) -> None:
        if not found:
            return
        sorted_out = sort_out(found, self._reads)
        for topic, messages in sorted_out.topics.items():
            self._take_topic(self._topics[topic], messages)
        self._note(sorted_out)
        self._metrics.pending_rows.set(self._chunk.rows)
        self._metrics.pending_bytes.set(self._chunk.bytes)

    def _take_topic(self, archived: ArchivedTopic, messages: Messages) -> None:
        table, refused = rows_of(messages, archived, self._logs[archived.topic].partitions)
        self._chunk.add(archived.topic, table, letters_of(messages, refused))
        self._metrics.events.labels(archived.folder, "refused").inc(len(refused))
        part, reads = self._chunk.of(archived.topic), self._reads[archived.topic]
        partitions, first = np.unique(messages.partition, return_index=True)
        last = len(messages.partition) - 1 - np.unique(messages.partition[::-1], return_index=True)[1]
        for p, a, b in zip(partitions.tolist(), messages.offset[first], messages.offset[last], strict=True):
            part.reached(p, int(a), int(b) + 1)
            reads[p] = int(b) + 1

    def _note(self, found: Consumed) -> None:
        """Ends of partitions, offsets that the log has not (any more), other errors."""
        for (topic, p), end in found.ends.items():
            if self._reads[topic][p] != NOWHERE:
                self._chunk.of(topic).reached(p, self._log_begin(topic, p, end), end)
                self._reads[topic][p] = max(self._reads[topic][p], end)
        for topic, p in found.gaps:
            if self._reads[topic][p] != NOWHERE:
                self._gap(topic, p)
        for error in found.errors:
            if error.fatal() or error.code() == KafkaError._MAX_POLL_EXCEEDED:
                raise KafkaException(error)
            kafka.report_error(error)

    def _log_begin(self, topic: str, partition: int, end: int) -> int:
        """Where a log begins that was read from its beginning and had no messages, at most its end."""
        if end == 0 or partition in self._chunk.of(topic).begin:
            return end
        found = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10.0)
        return min(found[0], end) if found else end

    def _gap(self, topic: str, partition: int) -> None:
        """Kafka has dropped what comes next: say what is lost and go on behind it."""
        wanted = int(self._reads[topic][partition])
        low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10.0) or (0, 0)
        place = f"{topic}/{partition}"
        if wanted > high:
            # Its log was cut: other events will stand at offsets that the warehouse has already.
            self._health.degrade(f"log {place}", f"ends at {high}, but {wanted} is archived; make the topic anew")
            self._consumer.incremental_unassign([TopicPartition(topic, partition)])
            self._reads[topic][partition] = NOWHERE
            return
        lost = max(low - wanted, 0)
        log.error("events lost", place=place, first=wanted, last=low - 1, events=lost)
        self._metrics.lost.labels(self._topics[topic].folder).inc(lost)
        self._health.degrade(f"log {place}", f"Kafka dropped offsets {wanted} to {low - 1} before they were archived")
        part = self._chunk.of(topic)
        if part.spans.get(partition):
            self._write()
        part.begin[partition] = part.next[partition] = low
        self._reads[topic][partition] = low
        # A seek is refused after an error.
        self._consumer.incremental_unassign([TopicPartition(topic, partition)])
        self._consumer.incremental_assign([TopicPartition(topic, partition, low)])

    # -- writing

    def _write(self) -> None:
        """The chunk's letters, its files, then its offsets. Raises WarehouseRefuses, TopicsChanged, KafkaException."""
        if not any(part.spans for part in self._chunk.topics.values()):
            return
        began = time.perf_counter()
        try:
            unchanged = self._described() == self._logs
        except KafkaException as error:
            # Whose events these are cannot be told now.
            log.warning("chunk waits", reason=str(error))
            self._chunk.later(RETRY_S)
            return
        if not unchanged:
            raise TopicsChanged("archived topics changed")
        for topic in list(self._chunk.topics):
            self._write_topic(topic)
        self._commit()
        self._failures = 0
        self._health.restore("warehouse")
        self._metrics.chunk_seconds.observe(time.perf_counter() - began)
        self._metrics.pending_rows.set(0)
        self._metrics.pending_bytes.set(0)

    def _write_topic(self, topic: str) -> None:
        part, source, topic_log = self._chunk.of(topic), self._topics[topic].files, self._logs[topic]
        spans = part.spans
        if not spans:
            return
        if part.letters:
            dead_letters.deliver(self._letters, part.letters, kafka.DELIVERY_TIMEOUT_S)
            for letter in part.letters:
                self._metrics.dead_letters.labels(letter.reason).inc()
        rows = sum(t.num_rows for t in part.tables)
        path = source.folder
        try:
            for file in chunk_files(source, topic_log, part.tables, spans):
                path = file.path
                size = self._store.write_table(path, file.table, plain_columns=(source.id_column,))
                self._metrics.files.labels(source.folder, "chunk").inc()
                self._metrics.bytes.labels(source.folder, "chunk").inc(size)
            for path in empty_marks(source, topic_log, part.tables, spans):
                self._store.put_empty(path)
        except (OSError, pa.ArrowException) as error:
            raise WarehouseRefuses(f"{self._store.shown(path)} cannot be written: {error}") from error
        for p, (_, last) in spans.items():
            self._uncommitted[topic, p] = last + 1
        self._chunk.written(topic)
        self._metrics.events.labels(source.folder, "archived").inc(rows)

    def _commit(self) -> None:
        """Tell Kafka how far the warehouse is. Where that fails it is told again later: it only saves work."""
        if not self._uncommitted:
            return
        offsets = [
            TopicPartition(topic, p, offset, metadata=self._logs[topic].topic_id)
            for (topic, p), offset in self._uncommitted.items()
        ]
        try:
            done = self._consumer.commit(offsets=offsets, asynchronous=False) or []
        except KafkaException as error:
            log.warning("offsets not committed", reason=str(error))
            return
        for tp in done:
            if tp.error is None and self._uncommitted.get((tp.topic, tp.partition)) == tp.offset:
                del self._uncommitted[tp.topic, tp.partition]

    def _beat(self) -> None:
        self._commit()
        for topic, archived in self._topics.items():
            reads = self._reads.get(topic)
            if reads is None:
                continue
            part, behind = self._chunk.of(topic), 0
            for p in np.flatnonzero(reads != NOWHERE).tolist():
                known = self._consumer.get_watermark_offsets(TopicPartition(topic, p), cached=True)
                if known and known[1] not in (OFFSET_INVALID, -1) and p in part.begin:
                    behind += max(known[1] - part.begin[p], 0)
            self._metrics.lag.labels(archived.folder).set(behind)
