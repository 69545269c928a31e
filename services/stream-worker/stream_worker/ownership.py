"""Whose shards are whose: the group's word, Redis's grant, and what to do when either is in doubt.

A shard is claimed in Redis each time the group assigns it. Whatever goes wrong afterwards, the answer is one: forget
what is in hand, claim again, go on from the offset in Redis.

What history a shard's state was built from (its base) stands in Redis, and beside the offset that is committed to
Kafka: so that a Redis that was emptied is told apart from one that never had it, and its shards are marked as lost.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import redis
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from feature_store.admission import UNSET_CLOCK
from feature_store.updates import Applied, ShardPosition, StateWriter, VersionSuperseded
from service_kit.health import Health
from service_kit.logs import get_logger

from stream_worker import kafka
from stream_worker.settings import WorkerSettings
from stream_worker.shards import Shard, ShardKey, ShardTable
from stream_worker.streams import PlanStreams
from stream_worker.worker_metrics import WorkerMetrics

log = get_logger(__name__)

REDIS_RETRY_S = 0.25
HALT_RETRY_S = 30.0
NEW, DOUBT, FENCED, HALTED = "new", "doubt", "fenced", "halted"
CUT_OFF = "0:log"
"""The base of a shard whose log's beginning, which its state was made of, has been deleted since."""


class Ownership:
    """The shards of one life of a consumer. Its methods are called by the consumer's thread alone."""

    def __init__(
        self,
        settings: WorkerSettings,
        streams: PlanStreams,
        consumer: Consumer,
        admin: AdminClient,
        topic_ids: Mapping[str, str],
        writer: Callable[[], StateWriter],
        metrics: WorkerMetrics,
        health: Health,
    ) -> None:
        """`writer` makes a StateWriter of the state version to follow; it raises RedisError while Redis is away and
        VersionSuperseded when there is none."""
        self._settings, self._streams, self._consumer, self._admin = settings, streams, consumer, admin
        self._make_writer, self._metrics, self._health = writer, metrics, health
        self.table = ShardTable(streams.state_topics, settings.shards)
        self.topic_ids = dict(topic_ids)
        self.writer: StateWriter | None = None
        self.over = False
        self.bases_to_commit = False
        self._bases: dict[ShardKey, str] = {}
        self._committed: dict[ShardKey, int] = {}
        self._claim_at = 0.0

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """The group gave us these shards besides those we have."""
        keys = [(tp.topic, tp.partition) for tp in partitions]
        for key in keys:
            self.table.wait(key, NEW)
        granted = self._claim(keys)
        consumer.incremental_assign([TopicPartition(t, p, granted.get((t, p), 0)) for t, p in keys])
        # A partition that was paused when it was taken away comes back paused.
        consumer.resume([TopicPartition(t, p) for t, p in granted])
        consumer.pause([TopicPartition(t, p) for t, p in keys if (t, p) not in granted])
        log.info("shards assigned", shards=_listed(keys), claimed=len(granted))
        self._health.unblock("state")

    def on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """The group took these shards away, or has done so without us knowing."""
        keys = [(tp.topic, tp.partition) for tp in partitions]
        for key in keys:
            self._forget(key)
        consumer.incremental_unassign(partitions)
        log.info("shards revoked", shards=_listed(keys))

    def forget_all(self) -> None:
        """The consumer has left its group."""
        for key in self.table.assigned:
            self._forget(key)

    def _forget(self, key: ShardKey) -> None:
        self.table.drop(key)
        self._bases.pop(key, None)
        self._committed.pop(key, None)
        self._metrics.forget_shard(self._streams.state_topics[key[0]], key[1])

    def _claim(self, keys: Sequence[ShardKey]) -> dict[ShardKey, int]:
        """Claim assigned shards; offset to go on from of each that Redis granted: none while it is away."""
        granted: dict[ShardKey, int] = {}
        try:
            self._recall_bases(keys)
            writer = self.writer = self.writer or self._make_writer()
            for topic, entity in self._streams.state_topics.items():
                wanted = sorted(p for t, p in keys if t == topic)
                if not wanted:
                    continue
                bases = {p: self._bases[topic, p] for p in wanted}
                for p, position in writer.claim(entity, topic, self.topic_ids[topic], wanted, bases).items():
                    self.table.claimed((topic, p), position)
                    self._note_base((topic, p), position)
                    granted[topic, p] = position.offset
                self._metrics.claims.labels(entity).inc(len(wanted))
        except redis.RedisError as error:
            self.redis_gone(error)
            granted.clear()
        except VersionSuperseded:
            self.superseded()
            granted.clear()
        except KafkaException as error:
            # What is committed cannot be asked for: nothing may be said to be whole before it is.
            log.info("bases not known yet", reason=str(error))
            self._claim_at = time.monotonic() + REDIS_RETRY_S
            self.doubt()
            granted.clear()
        else:
            self._health.restore("redis")
        return granted

    def _recall_bases(self, keys: Sequence[ShardKey]) -> None:
        """What is committed beside these shards' offsets, as far as it is not known yet. Raises KafkaException."""
        unknown = [TopicPartition(*key) for key in keys if key not in self._bases]
        if unknown:
            for tp in self._consumer.committed(unknown, timeout=kafka.REQUEST_TIMEOUT_S):
                self._bases[tp.topic, tp.partition] = tp.metadata or ""
                self._committed[tp.topic, tp.partition] = max(tp.offset, 0)

    def _note_base(self, key: ShardKey, position: ShardPosition) -> None:
        if position.base and position.base != self._bases[key]:
            self._bases[key] = position.base
            self.bases_to_commit = True
        if position.lost:
            log.error("history lost", topic=key[0], shard=key[1], base=position.lost)
            self._health.degrade("history", f"Redis has lost the state made of base {position.lost}: rebuild it")

    def committable(self, key: ShardKey, offset: int) -> TopicPartition:
        """An offset to commit, with the shard's base beside it."""
        return TopicPartition(*key, offset, self._bases.get(key, ""))

    def superseded(self) -> None:
        """The version that was followed is not the one to write any more: on with the one that is, if there is."""
        self.writer = None
        try:
            self.writer = self._make_writer()
            log.info("another version of the feature state is to be written", version=self.writer.version)
            self._health.restore("history")
        except VersionSuperseded:
            self.over = True
        except redis.RedisError as error:
            self.redis_gone(error)
        self.doubt(0.0)
        for reason in (FENCED, HALTED):
            for key in self.table.waiting_for(reason):
                self.table.wait(key, DOUBT)

    def claim_due(self) -> None:
        """Claim again what waits and is due, and read on from where Redis says."""
        due = self.table.due()
        if not due or time.monotonic() < self._claim_at:
            return
        if FENCED in due and not self._still_ours(due[FENCED]):
            for key in due.pop(FENCED):
                self.table.wait(key, FENCED, self._settings.session_timeout_ms / 1000)
        keys = [key for found in due.values() for key in found]
        for key, offset in self._claim(keys).items():
            at = TopicPartition(*key, offset)
            try:
                self._go_on_from(at)
            except KafkaException as error:
                log.info("cannot go on yet", topic=key[0], shard=key[1], offset=offset, reason=str(error))
                self.table.wait(key, DOUBT, REDIS_RETRY_S)
        if not self.table.waiting_for(HALTED):
            self._health.restore("shards")

    def _go_on_from(self, at: TopicPartition) -> None:
        try:
            self._consumer.seek(at)
        except KafkaException:
            # Its fetcher is not up yet, or never will be, as after its topic was made anew: give it a new one.
            self._consumer.incremental_unassign([at])
            self._consumer.incremental_assign([at])
        self._consumer.resume([at])

    def _still_ours(self, keys: Sequence[ShardKey]) -> bool:
        """Whether the group's coordinator takes a commit from us: it does from members of the present generation, and
        what that generation took from us `on_revoke` has been told of."""
        try:
            self._consumer.commit(offsets=[self.committable(key, 0) for key in keys], asynchronous=False)
        except KafkaException as error:
            log.warning("fenced shards are another's", shards=_listed(keys), reason=str(error))
            return False
        return True

    def redis_gone(self, error: redis.RedisError) -> None:
        """Redis does not answer: claim everything again when it does."""
        self._health.degrade("redis", f"{type(error).__name__}: {error}")
        self.writer = None
        self._claim_at = time.monotonic() + REDIS_RETRY_S
        self.doubt()

    def doubt(self, seconds: float = REDIS_RETRY_S) -> None:
        """What is in hand may or may not be in Redis: go on from what Redis says, in `seconds` at the earliest."""
        held = [shard.key for shard in self.table]
        self.table.wait_all(DOUBT, seconds)
        self._pause(held)

    def hold(self, held: bool) -> None:
        """Stop reading, or go on; what is claimed stays claimed."""
        for shard in self.table:
            at = [TopicPartition(*shard.key)]
            with contextlib.suppress(KafkaException):
                self._consumer.pause(at) if held else self._consumer.resume(at)

    def _pause(self, keys: Sequence[ShardKey]) -> None:
        # A shard that is being assigned this moment cannot be paused yet; what it brings is dropped.
        with contextlib.suppress(KafkaException):
            self._consumer.pause([TopicPartition(*key) for key in keys])

    def halt(self, key: ShardKey, reason: str, seconds: float = HALT_RETRY_S) -> None:
        """Stop this shard alone, say so, and look again later."""
        log.error("shard halted", topic=key[0], shard=key[1], reason=reason)
        self._health.degrade("shards", f"{key[0]}/{key[1]}: {reason}")
        self.table.wait(key, HALTED, seconds)
        self._pause([key])

    def refused(self, shard: Shard, applied: Applied) -> None:
        """Redis did not take a write to the shard."""
        self._metrics.refused_writes.labels(applied.status).inc()
        log.warning(
            "write refused",
            status=applied.status,
            entity=shard.entity,
            shard=shard.partition,
            offset=shard.offset,
            redis_offset=applied.offset,
        )
        if applied.status == "superseded":
            self.superseded()
            return
        if applied.status == "moved":
            self.table.wait(shard.key, DOUBT)
        else:
            # Younger owner: the group takes the shard away from us in a moment. If not, it is ours after all.
            self.table.wait(shard.key, FENCED, self._settings.session_timeout_ms / 1000)
        self._pause([shard.key])

    def gap(self, shard: Shard) -> None:
        """The log does not hold the offset we want: made anew, or cut off before we came."""
        topic, partition = shard.key
        if self.topics_changed():
            return
        low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), kafka.REQUEST_TIMEOUT_S)
        if shard.offset == 0 and shard.clock_us == UNSET_CLOCK and low > 0:
            if self._committed.get(shard.key) and not self._bases[shard.key]:
                # It was further once: what Redis has lost the log does not hold any more either.
                self._bases[shard.key] = CUT_OFF
                self.bases_to_commit = True
                self._claim([shard.key])
                if (claimed := self.table.get(shard.key)) is None:
                    return
                shard = claimed
            log.warning("log begins later", topic=topic, shard=partition, first_offset=low)
            self.table.read_up_to(shard, low)
            self._go_on_from(TopicPartition(topic, partition, low))
            return
        self.halt(
            shard.key,
            f"the log holds offsets {low} to {high}, the state goes on from {shard.offset}: events are missing,"
            " rebuild the state from the archive",
        )

    def topics_changed(self) -> bool:
        """Whether a topic was made anew since we last looked: its offsets begin anew; all shards are claimed again."""
        try:
            ids = kafka.topic_ids(self._admin, self._streams.state_topics)
        except kafka.TopicsMissing as error:
            self._health.degrade("topics", str(error))
            return False
        except KafkaException as error:
            log.info("topic ids not known", reason=str(error))
            return False
        self._health.restore("topics")
        if ids == self.topic_ids:
            return False
        log.warning("topics were made anew", was=self.topic_ids, now=ids)
        self.topic_ids = ids
        self.doubt()
        return True


def _listed(keys: Sequence[ShardKey]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for topic, partition in sorted(keys):
        out.setdefault(topic, []).append(partition)
    return out
