"""The re-key stage: events and labels → EntityBatch messages by another entity's key, exactly once.

A micro-batch's output, its dead letters and the offsets it was made of are one Kafka transaction; beside each offset
stands the partition's event-time clock. So whoever takes a partition over judges as the one before would have, and a
worker that lost a partition without knowing cannot commit: the group's generation travels with the offsets (KIP-447).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from feature_store.admission import UNSET_CLOCK
from service_kit.health import Health
from service_kit.logs import get_logger

from stream_worker import dead_letters, entity_batch, kafka
from stream_worker.bounded import CallHangs, until_done
from stream_worker.consumed import NOWHERE, Consumed, sort_out
from stream_worker.dead_letters import Letter, letters_of
from stream_worker.intake import Messages, Rows, take_in
from stream_worker.progress import RekeyNote
from stream_worker.settings import WorkerSettings
from stream_worker.shards import ShardKey
from stream_worker.streams import PlanStreams, Stream
from stream_worker.wire import Ints
from stream_worker.worker_metrics import WorkerMetrics

log = get_logger(__name__)

HEADERS = [("trine-type", b"trine.events.v1.EntityBatch"), ("trine-schema", b"1")]
CALL_TIMEOUT_S = 5.0
HUNG_AFTER_S = 15.0
FIRST_MESSAGES = 2_000


@dataclass(frozen=True, slots=True)
class Position:
    """Where a source partition goes on: next offset (None: nothing committed yet) and the note beside it."""

    offset: int | None
    note: RekeyNote


class RekeyStage:
    """`run` is the body of a thread; nothing else is called by others."""

    def __init__(self, settings: WorkerSettings, streams: PlanStreams, metrics: WorkerMetrics, health: Health) -> None:
        self._settings, self._streams = settings, streams
        self._metrics, self._health = metrics, health
        self._positions: dict[ShardKey, Position] = {}
        self._messages_wanted = FIRST_MESSAGES

    def run(self, stop: threading.Event) -> None:
        """Re-key until `stop`, then finish the transaction in hand and leave the group."""
        self._stop = stop
        while not stop.is_set():
            try:
                self._session(stop)
            except (KafkaException, CallHangs) as error:
                log.error("re-key stage starts anew", reason=str(error))
                self._health.degrade("rekey", str(error))
                self._metrics.restarts.labels("rekey").inc()
                stop.wait(1.0)

    def _session(self, stop: threading.Event) -> None:
        """One life of the Kafka clients."""
        self._positions = {}
        producer = self._producer = Producer(
            {
                **kafka.producer_config(self._settings),
                "transactional.id": f"{self._settings.group_prefix}-rekey-{self._settings.worker_id}",
                "transaction.timeout.ms": self._settings.transaction_timeout_ms,
            }
        )
        # Ends what an earlier life of this worker left open, and fences it.
        producer.init_transactions(CALL_TIMEOUT_S)
        consumer = self._consumer = Consumer(kafka.consumer_config(self._settings, "rekey"))
        try:
            consumer.subscribe(
                list(self._streams.rekeyed),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_revoke,
            )
            while not stop.is_set():
                self._step()
        finally:
            consumer.close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(self._from_committed(partitions))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Only `consume` calls us, and no transaction is open then.
        for tp in partitions:
            self._positions.pop((tp.topic, tp.partition), None)
        consumer.incremental_unassign(partitions)

    def _from_committed(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Positions as committed, waiting for transactions that are being ended."""
        if not partitions:
            return []
        out = []
        asked = [TopicPartition(tp.topic, tp.partition) for tp in partitions]
        # A worker that was killed leaves its transaction open until that times out.
        patience_s = self._settings.transaction_timeout_ms / 1000 + 5
        for tp in self._consumer.committed(asked, timeout=patience_s):
            if tp.error is not None:
                raise KafkaException(tp.error)
            known = tp.offset >= 0
            note = RekeyNote.of(tp.metadata) if known else None
            self._positions[tp.topic, tp.partition] = Position(
                tp.offset if known else None, note or RekeyNote(UNSET_CLOCK, 0)
            )
            out.append(TopicPartition(tp.topic, tp.partition, tp.offset if known else OFFSET_BEGINNING))
        return out

    def _step(self) -> None:
        found = self._consumer.consume(self._messages_wanted, self._settings.linger_s)
        if not found:
            return
        began = time.perf_counter()
        read = {topic: self._read_offsets(topic) for topic in self._streams.rekeyed}
        sorted_out = sort_out(found, read)
        try:
            rows = self._transact(sorted_out)
            self._health.restore("rekey")
        except KafkaException as error:
            if not (error.args and error.args[0].txn_requires_abort()):
                raise
            self._abort(error)
            return
        self._note(sorted_out)
        if rows:
            self._metrics.batch_seconds.labels("rekey").observe(time.perf_counter() - began)
        if len(found) >= self._messages_wanted:
            self._messages_wanted = min(self._messages_wanted * 2, self._settings.batch_rows)

    def _transact(self, found: Consumed) -> int:
        """One transaction of everything found; raises KafkaException. Rows read."""
        after = dict(self._positions)
        letters: list[Letter] = []
        taken: list[tuple[Stream, Messages, Rows]] = []
        for topic, messages in found.topics.items():
            letters += self._take_in(topic, messages, after, taken)
        for key, end in found.ends.items():
            # Past the end of what was read lie only Kafka's own control records.
            if key in after and end > (after[key].offset or 0):
                after[key] = Position(end, after[key].note)
        moved = {key: position for key, position in after.items() if position.offset != self._positions[key].offset}
        if not moved:
            return 0
        self._producer.begin_transaction()
        dead_letters.produce(self._producer, letters)
        sent = 0
        for target in self._streams.derived.values():
            for shard, value, rows in entity_batch.encode(target, taken, self._settings.shards):
                self._produce(target.topic, shard, value)
                sent += rows
        # An abort that finds nothing in the producer's queue leaves no hole in its sequence numbers.
        self._producer.flush(CALL_TIMEOUT_S)
        offsets = [TopicPartition(t, p, at.offset or 0, at.note.text()) for (t, p), at in moved.items()]
        group = self._consumer.consumer_group_metadata()
        self._call("send_offsets", lambda: self._producer.send_offsets_to_transaction(offsets, group, CALL_TIMEOUT_S))
        self._call("commit", lambda: self._producer.commit_transaction(CALL_TIMEOUT_S))
        self._positions.update(moved)
        self._count(taken, letters)
        return sent

    def _take_in(
        self,
        topic: str,
        messages: Messages,
        after: dict[ShardKey, Position],
        taken: list[tuple[Stream, Messages, Rows]],
    ) -> list[Letter]:
        """Adds the topic's usable rows to `taken` and moves `after` on; its dead letters, where they are ours."""
        stream, plan = self._streams.sources[topic], self._streams.plan
        keys = [t.key for t in self._streams.derived.values() if stream.name in t.fields]
        clocks = {p: after[topic, p].note.clock_us for p in messages.last_us}
        rows, refused = take_in(
            messages, stream, keys, clocks, self._settings.shards, plan.lateness_us, plan.max_step_us
        )
        taken.append((stream, messages, rows))
        last = dict(zip(messages.partition.tolist(), messages.offset.tolist(), strict=True))
        for p, offset in last.items():
            after[topic, p] = Position(offset + 1, RekeyNote(clocks.get(p, UNSET_CLOCK), messages.last_us[p]))
        return letters_of(messages, refused) if self._streams.lettered_by_rekey(topic) else []

    def _call(self, name: str, call: Callable[[], object]) -> None:
        until_done(name, call, HUNG_AFTER_S, self._stop)

    def _produce(self, topic: str, shard: int, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(topic, value, partition=shard, headers=list(HEADERS))
                return
            except BufferError:
                self._producer.poll(0.1)

    def _abort(self, error: KafkaException) -> None:
        """Undo the transaction and read its input again."""
        log.warning("transaction aborted", reason=str(error))
        self._metrics.aborts.inc()
        self._call("abort", lambda: self._producer.abort_transaction(CALL_TIMEOUT_S))
        held = [TopicPartition(*key) for key in self._positions]
        for tp in self._from_committed(held):
            self._consumer.seek(tp)

    def _count(self, taken: list[tuple[Stream, Messages, Rows]], letters: list[Letter]) -> None:
        for stream, messages, rows in taken:
            self._metrics.events.labels(stream.name, "rekeyed").inc(len(rows.row))
            self._metrics.events.labels(stream.name, "refused").inc(len(messages.values) - len(rows.row))
        for letter in letters:
            self._metrics.dead_letters.labels(letter.reason).inc()

    def _read_offsets(self, topic: str) -> Ints:
        out = np.full(self._settings.shards, NOWHERE, dtype=np.int64)
        for (t, p), position in self._positions.items():
            if t == topic:
                out[p] = position.offset or 0
        return out

    def _note(self, found: Consumed) -> None:
        for key in found.gaps:
            if key in self._positions:
                self._gap(key)
        for error in found.errors:
            if error.fatal() or error.code() == KafkaError._MAX_POLL_EXCEEDED:
                raise KafkaException(error)
            kafka.report_error(error)

    def _gap(self, key: ShardKey) -> None:
        """The log does not hold the offset we want: made anew, or cut off before we came. On from its beginning."""
        at = self._positions[key].offset
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*key), CALL_TIMEOUT_S)
        log.warning("log begins elsewhere", topic=key[0], shard=key[1], offset=at, first=low, end=high)
        if at is not None and at < low:
            # Nobody can re-key what is gone; the state stage halts such shards of its own.
            reason = f"{key[0]}/{key[1]}: offsets {at} to {low} were cut off before they were re-keyed"
            self._health.degrade("rekey gap", f"{reason}; rebuild the state from the archive")
        self._positions[key] = Position(None, self._positions[key].note)
        self._consumer.seek(TopicPartition(*key, OFFSET_BEGINNING))
