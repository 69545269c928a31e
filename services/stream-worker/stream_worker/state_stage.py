"""The state stage: logs → feature state in Redis, exactly once in effect.

Where a shard goes on is written in Redis, beside its state (offsets committed to Kafka only inform lag monitors).
A shard is claimed there each time the group assigns it; a writer that lost it without knowing is refused by Redis.
Whatever goes wrong, the answer is one: forget what is in hand, claim again, go on from the offset in Redis.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from feature_store.admission import UNSET_CLOCK
from feature_store.codec import StateCorrupt
from feature_store.updates import Applied, ShardUpdate, StateWriter
from service_kit.health import Health
from service_kit.logs import get_logger

from stream_worker import dead_letters, kafka
from stream_worker.batches import MicroBatch, derived_batches, direct_batch
from stream_worker.consumed import Consumed, sort_out
from stream_worker.dead_letters import Letter
from stream_worker.intake import Messages
from stream_worker.progress import ProgressProbe, ProgressTracker, now_us
from stream_worker.settings import WorkerSettings
from stream_worker.shards import Shard, ShardKey, ShardTable
from stream_worker.streams import PlanStreams
from stream_worker.worker_metrics import WorkerMetrics

log = get_logger(__name__)

FIRST_MESSAGES = 2_000
COMMIT_EVERY_S = 5.0
REDIS_RETRY_S = 0.25
HALT_RETRY_S = 30.0
NEW, DOUBT, FENCED, HALTED = "new", "doubt", "fenced", "halted"


class StateStage:
    """One consumer of every topic that state follows. `run` is a thread's body; nothing else is called by others."""

    def __init__(
        self,
        settings: WorkerSettings,
        streams: PlanStreams,
        writer: Callable[[], StateWriter],
        probe: ProgressProbe,
        admin: AdminClient,
        metrics: WorkerMetrics,
        health: Health,
    ) -> None:
        """`writer` makes a StateWriter of the served state version; it raises RedisError while Redis is away."""
        self._settings, self._streams, self._make_writer = settings, streams, writer
        self._probe, self._admin, self._metrics, self._health = probe, admin, metrics, health
        self._writer: StateWriter | None = None
        self._topic_ids: dict[str, str] = {}
        self._table = ShardTable(streams.state_topics, settings.shards)
        self._tracker = ProgressTracker()
        self._messages_wanted = FIRST_MESSAGES
        self._redis_due = self._beat_due = self._commit_due = 0.0

    def run(self, stop: threading.Event) -> None:
        """Absorb until `stop`, then finish the micro-batch in hand, commit and leave the group."""
        self._health.block("state", "has not joined its consumer group yet")
        while not stop.is_set():
            try:
                self._session(stop)
            except kafka.TopicsMissing as error:
                self._health.degrade("kafka", str(error))
                stop.wait(2.0)
            except KafkaException as error:
                log.error("state stage starts anew", reason=str(error))
                self._health.degrade("kafka", str(error))
                self._metrics.restarts.labels("state").inc()
                stop.wait(1.0)

    def _session(self, stop: threading.Event) -> None:
        """One life of the Kafka clients."""
        self._topic_ids = kafka.topic_ids(self._admin, self._streams.state_topics, self._settings.shards)
        self._table = ShardTable(self._streams.state_topics, self._settings.shards)
        consumer = Consumer(kafka.consumer_config(self._settings, "features"))
        self._letters = Producer(kafka.producer_config(self._settings))
        self._consumer = consumer
        try:
            consumer.subscribe(
                list(self._streams.state_topics),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_revoke,
            )
            while not stop.is_set():
                self._claim_due()
                self._step()
                self._beat()
            self._commit(asynchronous=False)
        finally:
            consumer.close()
            for key in self._table.assigned:
                self._forget(key)

    # -- the group -------------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        keys = [(tp.topic, tp.partition) for tp in partitions]
        for key in keys:
            self._table.wait(key, NEW)
        granted = self._claim(keys)
        consumer.incremental_assign([TopicPartition(t, p, granted.get((t, p), 0)) for t, p in keys])
        # A partition that was paused when it was taken away comes back paused.
        consumer.resume([TopicPartition(t, p) for t, p in granted])
        consumer.pause([TopicPartition(t, p) for t, p in keys if (t, p) not in granted])
        log.info("shards assigned", shards=_listed(keys), claimed=len(granted))
        self._health.unblock("state")

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        keys = [(tp.topic, tp.partition) for tp in partitions]
        for key in keys:
            self._forget(key)
        consumer.incremental_unassign(partitions)
        log.info("shards revoked", shards=_listed(keys))

    def _forget(self, key: ShardKey) -> None:
        self._table.drop(key)
        self._metrics.forget_shard(self._streams.state_topics[key[0]], key[1])

    # -- claims ----------------------------------------------------------------------------------------------------

    def _claim(self, keys: Sequence[ShardKey]) -> dict[ShardKey, int]:
        """Claim assigned shards; offset to go on from of each that Redis granted: none while it is away."""
        granted: dict[ShardKey, int] = {}
        try:
            writer = self._writer = self._writer or self._make_writer()
            for topic, entity in self._streams.state_topics.items():
                wanted = sorted(p for t, p in keys if t == topic)
                if not wanted:
                    continue
                for p, position in writer.claim(entity, topic, self._topic_ids[topic], wanted).items():
                    self._table.claimed((topic, p), position)
                    granted[topic, p] = position.offset
                self._metrics.claims.labels(entity).inc(len(wanted))
        except redis.RedisError as error:
            self._redis_gone(error)
            granted.clear()
        else:
            self._health.restore("redis")
        return granted

    def _claim_due(self) -> None:
        """Claim again what waits and is due, and read on from where Redis says."""
        due = self._table.due()
        if not due or time.monotonic() < self._redis_due:
            return
        if FENCED in due and not self._still_ours(due[FENCED]):
            for key in due.pop(FENCED):
                self._table.wait(key, FENCED, self._settings.session_timeout_ms / 1000)
        keys = [key for found in due.values() for key in found]
        for key, offset in self._claim(keys).items():
            at = TopicPartition(*key, offset)
            try:
                self._consumer.seek(at)
                self._consumer.resume([at])
            except KafkaException as error:
                # The partition's fetcher is not up yet: once more.
                log.info("cannot seek yet", topic=key[0], shard=key[1], reason=str(error))
                self._table.wait(key, DOUBT, REDIS_RETRY_S)
        if not self._table.waiting_for(HALTED):
            self._health.restore("shards")

    def _still_ours(self, keys: Sequence[ShardKey]) -> bool:
        """Whether the group's coordinator takes a commit from us for these shards: only their owner's is taken."""
        try:
            self._consumer.commit(offsets=[TopicPartition(t, p, 0) for t, p in keys], asynchronous=False)
        except KafkaException as error:
            log.warning("fenced shards are another's", shards=_listed(keys), reason=str(error))
            return False
        return True

    def _redis_gone(self, error: redis.RedisError) -> None:
        self._health.degrade("redis", f"{type(error).__name__}: {error}")
        self._writer = None
        self._redis_due = time.monotonic() + REDIS_RETRY_S
        self._doubt()

    def _doubt(self) -> None:
        """What is in hand may or may not be in Redis: go on from what Redis says."""
        held = [shard.key for shard in self._table]
        self._table.wait_all(DOUBT, REDIS_RETRY_S)
        self._pause(held)

    def _pause(self, keys: Sequence[ShardKey]) -> None:
        # A shard that is being assigned this moment cannot be paused yet; what it brings is dropped.
        with contextlib.suppress(KafkaException):
            self._consumer.pause([TopicPartition(*key) for key in keys])

    def _halt(self, key: ShardKey, reason: str, seconds: float = HALT_RETRY_S) -> None:
        """Stop this shard alone, say so, and look again later."""
        log.error("shard halted", topic=key[0], shard=key[1], reason=reason)
        self._health.degrade("shards", f"{key[0]}/{key[1]}: {reason}")
        self._table.wait(key, HALTED, seconds)
        self._pause([key])

    # -- work ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Consume and absorb one micro-batch."""
        found = self._consumer.consume(self._messages_wanted, self._settings.linger_s)
        if not found:
            return
        began = time.perf_counter()
        sorted_out = sort_out(found, self._table.read_offsets)
        rows = 0
        try:
            for topic, messages in sorted_out.topics.items():
                rows += self._absorb_topic(topic, messages)
        except redis.RedisError as error:
            self._redis_gone(error)
        except KafkaException as error:
            # Dead letters could not be sent: the same messages come again.
            log.warning("dead letters not delivered", reason=str(error))
            self._doubt()
        self._note(sorted_out)
        if rows:
            self._metrics.batch_seconds.labels("state").observe(time.perf_counter() - began)
        self._messages_wanted = _adapted(self._messages_wanted, len(found), rows, self._settings.batch_rows)

    def _absorb_topic(self, topic: str, messages: Messages) -> int:
        shards, count = self._settings.shards, 0
        target = self._streams.derived.get(topic)
        if target is None:
            own = {s.partition: s for s in self._table if s.topic == topic}
            stream = self._streams.sources[topic]
            self._absorb(direct_batch(messages, stream, own, shards, self._streams.plan))
            return len(messages.values)
        for batch in derived_batches(
            messages, target, lambda p: self._table.get((topic, p)), shards, self._settings.batch_rows
        ):
            self._absorb(batch)
            count += batch.rows
        return count

    def _absorb(self, batch: MicroBatch) -> None:
        """Letters first, then state; raises RedisError or KafkaException with nothing or all of a shard applied."""
        self._send(batch.letters)
        entity = self._streams.state_topics[batch.topic]
        for update, applied in self._apply(entity, batch):
            shard = self._table.get((batch.topic, applied.shard))
            if shard is None:
                continue
            if applied.status == "ok":
                shard.offset, shard.clock_us = update.next_offset, update.clock_us
                shard.progress_us, shard.told_at = update.progress_us, time.monotonic()
                self._table.read_up_to(shard, update.next_offset)
                self._count(batch, applied)
            else:
                self._refused(shard, applied)

    def _apply(self, entity: str, batch: MicroBatch) -> list[tuple[ShardUpdate, Applied]]:
        assert self._writer is not None, "shards are claimed through a writer"

        def tell(conflicts: Mapping[int, Sequence[tuple[int, int]]]) -> None:
            self._send(batch.conflict_letters(conflicts))

        try:
            return list(zip(batch.updates, self._writer.apply(entity, batch.updates, tell), strict=True))
        except StateCorrupt:
            # One damaged state must not hold up the other shards.
            out = []
            for update in batch.updates:
                try:
                    out.append((update, self._writer.apply(entity, [update], tell)[0]))
                except StateCorrupt as error:
                    self._halt((batch.topic, update.shard), f"its state in Redis is damaged, rebuild it: {error}")
            return out

    def _refused(self, shard: Shard, applied: Applied) -> None:
        self._metrics.refused_writes.labels(applied.status).inc()
        log.warning(
            "write refused",
            status=applied.status,
            entity=shard.entity,
            shard=shard.partition,
            offset=shard.offset,
            redis_offset=applied.offset,
        )
        if applied.status == "moved":
            self._table.wait(shard.key, DOUBT)
        else:
            # Younger owner: the group takes the shard away from us in a moment. If not, it is ours after all.
            self._table.wait(shard.key, FENCED, self._settings.session_timeout_ms / 1000)
        self._pause([shard.key])

    def _send(self, letters: Sequence[Letter]) -> None:
        if not letters:
            return
        dead_letters.deliver(self._letters, letters, kafka.REQUEST_TIMEOUT_S)
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
            if (shard := self._table.get(key)) is not None:
                self._table.read_up_to(shard, end)
        for key in found.gaps:
            if (shard := self._table.get(key)) is not None:
                self._gap(shard)
        for error in found.errors:
            if error.fatal() or error.code() == KafkaError._MAX_POLL_EXCEEDED:
                raise KafkaException(error)
            kafka.report_error(error)

    def _gap(self, shard: Shard) -> None:
        """The log does not hold the offset we want: made anew, or cut off before we came."""
        topic, partition = shard.key
        now = kafka.topic_ids(self._admin, [topic])[topic]
        if now != self._topic_ids[topic]:
            self._topics_anew({**self._topic_ids, topic: now})
            return
        low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), kafka.REQUEST_TIMEOUT_S)
        if shard.offset == 0 and shard.clock_us == UNSET_CLOCK and low > 0:
            log.warning("log begins later", topic=topic, shard=partition, first_offset=low)
            self._table.read_up_to(shard, low)
            self._consumer.seek(TopicPartition(topic, partition, low))
            return
        self._halt(
            shard.key,
            f"the log holds offsets {low} to {high}, the state goes on from {shard.offset}: events are missing,"
            " rebuild the state from the archive",
        )

    def _topics_anew(self, ids: dict[str, str]) -> None:
        for topic in ids:
            if ids[topic] != self._topic_ids.get(topic):
                log.warning("topic was made anew", topic=topic, topic_id=ids[topic])
        self._topic_ids = dict(ids)
        self._tracker.clear()
        self._doubt()

    # -- progress --------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Now and then: proofs of progress, idle shards' word that they are up to date, commits, a new version."""
        now = time.monotonic()
        if now < self._beat_due:
            return
        self._beat_due = now + self._settings.heartbeat_s
        for checkpoint in self._probe.take():
            self._tracker.add(checkpoint)
        if self._probe.topic_ids and self._probe.topic_ids != self._topic_ids:
            self._topics_anew(self._probe.topic_ids)
        try:
            if self._writer is not None and self._writer.current_version() != self._writer.version:
                log.info("another version of the feature state is served", was=self._writer.version)
                self._writer = None
                self._doubt()
            self._tell_progress(now)
        except redis.RedisError as error:
            self._redis_gone(error)
        if now >= self._commit_due:
            self._commit_due = now + COMMIT_EVERY_S
            self._commit(asynchronous=True)

    def _tell_progress(self, now: float) -> None:
        """An empty update also notices at once where Redis went back in time or another writer took over."""
        wall = now_us()
        for entity, shards in self._table.by_entity().items():
            updates = []
            topic = shards[0].topic if shards else ""
            reached = self._tracker.reached_us(topic, self._table.read_offsets[topic]) if shards else ()
            behind = self._tracker.lag_events(topic, self._table.read_offsets[topic]) if shards else ()
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

    def _commit(self, asynchronous: bool) -> None:
        """Tell Kafka how far we are, for lag monitors and autoscalers only."""
        offsets = [TopicPartition(s.topic, s.partition, s.read_offset) for s in self._table if s.read_offset > 0]
        if not offsets:
            return
        try:
            if asynchronous:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.info("offsets not committed", reason=str(error))


def _adapted(wanted: int, found: int, rows: int, most: int) -> int:
    """Messages to ask for next: as many as make `most` rows, found by doubling while batches come full."""
    if rows > most:
        return max(64, wanted * most // rows)
    if found >= wanted and rows <= most // 2:
        return min(wanted * 2, most)
    return wanted


def _listed(keys: Sequence[ShardKey]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for topic, partition in sorted(keys):
        out.setdefault(topic, []).append(partition)
    return out
