"""The state stage: logs → feature state in Redis, exactly once in effect.

Where a shard goes on is written in Redis, beside its state (offsets committed to Kafka only inform lag monitors; for
what stands beside them see ownership.py). Micro-batch after micro-batch: consume, take in, send dead letters, apply. A
writer that lost a shard without knowing is refused by Redis; see ownership.py for what follows.

A second stage may follow another version, which a rebuild has made, until it is served (rebuild_follower.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from feature_store.codec import StateCorrupt
from feature_store.updates import Applied, ShardUpdate, StateWriter
from service_kit.health import Health
from service_kit.logs import get_logger

from stream_worker import dead_letters, kafka
from stream_worker.batches import MicroBatch, derived_batches, direct_batch
from stream_worker.consumed import Consumed, sort_out
from stream_worker.dead_letters import Letter
from stream_worker.intake import Messages
from stream_worker.ownership import Ownership
from stream_worker.progress import ProgressProbe, ProgressTracker, now_us
from stream_worker.settings import WorkerSettings
from stream_worker.shards import ShardKey
from stream_worker.streams import PlanStreams
from stream_worker.worker_metrics import WorkerMetrics

log = get_logger(__name__)

FIRST_MESSAGES = 2_000
COMMIT_EVERY_S = 5.0
TOPICS_EVERY_S = 2.0


class StateStage:
    """One consumer of every topic that state follows. `run` is a thread's body; nothing else is called by others.

    `group`: the consumer group's name after the prefix. `unseen`: the version that is followed is not served; dead
    letters that the served version's stage has sent are not sent again, and `run` ends with the version.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        streams: PlanStreams,
        writer: Callable[[], StateWriter],
        probe: ProgressProbe,
        admin: AdminClient,
        metrics: WorkerMetrics,
        health: Health,
        group: str = "features",
        unseen: bool = False,
    ) -> None:
        """`writer` makes a StateWriter of the state version to follow; it raises RedisError while Redis is away and
        VersionSuperseded when there is none."""
        self._settings, self._streams, self._make_writer = settings, streams, writer
        self._group, self._unseen = group, unseen
        self._lettered: dict[ShardKey, int] = {}
        self._held = self._over = False
        self._probe, self._admin, self._metrics, self._health = probe, admin, metrics, health
        self._tracker = ProgressTracker()
        self._messages_wanted = FIRST_MESSAGES
        self._beat_due = self._commit_due = self._topics_due = 0.0

    def run(self, stop: threading.Event) -> None:
        """Absorb until `stop` (or the version's end), then finish the micro-batch in hand, commit, leave the group."""
        self._health.block("state", "has not joined its consumer group yet")
        while not stop.is_set() and not self._over:
            try:
                self._session(stop)
            except kafka.TopicsMissing as error:
                self._health.degrade("topics", str(error))
                stop.wait(2.0)
            except KafkaException as error:
                log.error("state stage starts anew", reason=str(error))
                self._metrics.restarts.labels("state").inc()
                stop.wait(1.0)

    def _session(self, stop: threading.Event) -> None:
        """One life of the Kafka clients."""
        topics = self._streams.state_topics
        topic_ids = kafka.topic_ids(self._admin, topics, self._settings.shards)
        self._health.restore("topics")
        self._tracker.clear()
        self._letters = Producer(kafka.producer_config(self._settings))
        self._consumer = Consumer(kafka.consumer_config(self._settings, self._group))
        self._held = False
        self._own = Ownership(
            self._settings,
            self._streams,
            self._consumer,
            self._admin,
            topic_ids,
            self._make_writer,
            self._metrics,
            self._health,
        )
        try:
            self._consumer.subscribe(
                list(topics),
                on_assign=self._own.on_assign,
                on_revoke=self._own.on_revoke,
                on_lost=self._own.on_revoke,
            )
            while not stop.is_set() and not self._own.over:
                self._own.claim_due()
                self._step()
                self._beat()
            self._over = self._own.over
            self._commit()
        finally:
            self._consumer.close()
            self._own.forget_all()

    def _step(self) -> None:
        """Consume and absorb one micro-batch."""
        found = self._consumer.consume(self._messages_wanted, self._settings.linger_s)
        if not found:
            return
        began = time.perf_counter()
        sorted_out = sort_out(found, self._own.table.read_offsets)
        rows = 0
        try:
            for topic, messages in sorted_out.topics.items():
                rows += self._absorb_topic(topic, messages)
        except redis.RedisError as error:
            self._own.redis_gone(error)
        except KafkaException as error:
            # Dead letters could not be sent: the same messages come again.
            log.warning("dead letters not delivered", reason=str(error))
            self._own.doubt()
        self._note(sorted_out)
        if rows:
            self._metrics.batch_seconds.labels("state").observe(time.perf_counter() - began)
        self._messages_wanted = adapted(self._messages_wanted, len(found), rows, self._settings.batch_rows)

    def _absorb_topic(self, topic: str, messages: Messages) -> int:
        shards, count = self._settings.shards, 0
        target = self._streams.derived.get(topic)
        if target is None:
            own = {s.partition: s for s in self._own.table if s.topic == topic}
            stream = self._streams.sources[topic]
            self._absorb(direct_batch(messages, stream, own, shards, self._streams.plan))
            return len(messages.values)
        for batch in derived_batches(
            messages, target, lambda p: self._own.table.get((topic, p)), shards, self._settings.batch_rows
        ):
            self._absorb(batch)
            count += batch.rows
        return count

    def _absorb(self, batch: MicroBatch) -> None:
        """Letters first, then state; raises RedisError or KafkaException with nothing or all of a shard applied."""
        self._send([x for x in batch.letters if x.offset >= self._lettered.get((x.topic, x.partition), 0)])
        entity = self._streams.state_topics[batch.topic]
        for update, applied in self._apply(entity, batch):
            shard = self._own.table.get((batch.topic, applied.shard))
            if shard is None:
                continue
            if applied.status == "ok":
                shard.offset, shard.clock_us = update.next_offset, update.clock_us
                shard.progress_us, shard.told_at = update.progress_us, time.monotonic()
                self._own.table.read_up_to(shard, update.next_offset)
                self._count(batch, applied)
            else:
                self._own.refused(shard, applied)

    def _apply(self, entity: str, batch: MicroBatch) -> list[tuple[ShardUpdate, Applied]]:
        assert self._own.writer is not None, "shards are claimed through a writer"

        ends = {update.shard: update.next_offset for update in batch.updates}

        def tell(conflicts: Mapping[int, Sequence[tuple[int, int]]]) -> None:
            new = {s: c for s, c in conflicts.items() if ends[s] > self._lettered.get((batch.topic, s), 0)}
            self._send(batch.conflict_letters(new))

        try:
            return list(zip(batch.updates, self._own.writer.apply(entity, batch.updates, tell), strict=True))
        except StateCorrupt:
            # One damaged state must not hold up the other shards.
            out = []
            for update in batch.updates:
                try:
                    out.append((update, self._own.writer.apply(entity, [update], tell)[0]))
                except StateCorrupt as error:
                    self._own.halt((batch.topic, update.shard), f"its state in Redis is damaged, rebuild it: {error}")
            return out

    def _send(self, letters: Sequence[Letter]) -> None:
        if not letters:
            return
        dead_letters.deliver(self._letters, letters, kafka.DELIVERY_TIMEOUT_S)
        for letter in letters:
            self._metrics.dead_letters.labels(letter.reason).inc()

    def _count(self, batch: MicroBatch, applied: Applied) -> None:
        for part in batch.parts.get(applied.shard, ()):
            self._metrics.events.labels(part.columns.source, "absorbed").inc(len(part.columns.id))
        if applied.duplicates:
            self._metrics.events.labels(batch.topic, "duplicate").inc(applied.duplicates)

    def _note(self, found: Consumed) -> None:
        """Ends of partitions, positions outside their logs, other errors."""
        for key, end in found.ends.items():
            if (shard := self._own.table.get(key)) is not None:
                self._own.table.read_up_to(shard, end)
        for key in found.gaps:
            if (shard := self._own.table.get(key)) is not None:
                self._own.gap(shard)
        for error in found.errors:
            if error.fatal() or error.code() == KafkaError._MAX_POLL_EXCEEDED:
                raise KafkaException(error)
            kafka.report_error(error)

    # -- progress --------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Now and then: proofs of progress, idle shards' word that they are up to date, commits, a new version."""
        now = time.monotonic()
        if now < self._beat_due:
            return
        self._beat_due = now + self._settings.heartbeat_s
        for checkpoint in self._probe.take():
            self._tracker.add(checkpoint)
        try:
            writer = self._own.writer
            if writer is not None and writer.current_version() != writer.version:
                self._own.superseded()
            elif writer is not None and self._unseen:
                self._look_at_served(writer)
            elif writer is not None and (held := writer.held()) != self._held:
                log.info("the next version of the feature state passes", held=held)
                self._held = held
                self._own.hold(held)
            self._tell_progress(now)
        except redis.RedisError as error:
            self._own.redis_gone(error)
        if now >= self._commit_due or self._own.bases_to_commit:
            self._commit_due = now + COMMIT_EVERY_S
            self._commit()
        if now >= self._topics_due:
            self._topics_due = now + TOPICS_EVERY_S
            if self._own.topics_changed():
                self._tracker.clear()

    def _tell_progress(self, now: float) -> None:
        """An empty update also notices at once where Redis went back in time or another writer took over."""
        wall = now_us()
        for entity, shards in self._own.table.by_entity().items():
            updates = []
            topic = shards[0].topic if shards else ""
            reached = self._tracker.reached_us(topic, self._own.table.read_offsets[topic]) if shards else ()
            behind = self._tracker.lag_events(topic, self._own.table.read_offsets[topic]) if shards else ()
            for shard in shards:
                shard.progress_us = max(shard.progress_us, int(reached[shard.partition]))
                label = entity, str(shard.partition)
                self._metrics.lag_events.labels(*label).set(int(behind[shard.partition]))
                if shard.progress_us:
                    self._metrics.lag_seconds.labels(*label).set(max(wall - shard.progress_us, 0) / 1e6)
                updates.append(
                    ShardUpdate(shard.partition, shard.offset, shard.read_offset, shard.clock_us, shard.progress_us)
                )
            self._metrics.shards.labels(entity).set(len(shards))
            self._metrics.rekey_lag.set(self._probe.rekey_lag_events)
            if updates:
                self._absorb(MicroBatch(topic, updates, [], {}, None, 0))

    def _commit(self) -> None:
        """Tell Kafka how far we are, for lag monitors and autoscalers, and what history the state was built from."""
        bases, self._own.bases_to_commit = self._own.bases_to_commit, False
        offsets = [self._own.committable(s.key, s.read_offset) for s in self._own.table if s.read_offset > 0 or bases]
        if not offsets:
            return
        try:
            if bases:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.info("offsets not committed", reason=str(error))
            self._own.bases_to_commit = bases

    def _look_at_served(self, writer: StateWriter) -> None:
        """Up to where the served version's stage has sent dead letters: it does before it moves on."""
        for entity, shards in self._own.table.by_entity().items():
            found = writer.served_offsets(entity, [s.partition for s in shards])
            self._lettered.update({s.key: found[s.partition] for s in shards})


def adapted(wanted: int, found: int, rows: int, most: int) -> int:
    """Messages to ask for next: as many as make `most` rows, found by doubling while batches come full."""
    if rows > most:
        return max(64, wanted * most // rows)
    if found >= wanted and rows <= most // 2:
        return min(wanted * 2, most)
    return wanted
