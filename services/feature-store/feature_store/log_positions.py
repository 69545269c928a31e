"""Where in Kafka's logs the state goes on that an archive gives: positions for every entity and shard.

A topic keyed by the entity: the offset that the archiver has committed, below which everything is in the warehouse. A
re-keyed topic is not archived, and its rows do not say how far their sources had come. But a row of a source message
that the archive has not was re-keyed after that message was recorded: so from a time before the first of those on
everything is read again. What the state holds already is known by its id and changes nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from feature_store.admission import UNSET_CLOCK
from feature_store.archived_log import LogEnd
from feature_store.definitions import FeaturePlan
from feature_store.warehouse_names import log_name

_TIMEOUT_S = 10.0
SKEW_MS = 600_000
"""How far the clocks of those who record and those who re-key may differ."""


class LogsUnreadable(Exception):
    """Kafka does not answer, or a topic is not there; the message says which."""


@dataclass(frozen=True, slots=True)
class ArchivedLogs:
    """`ends`: by source topic how far it is archived. `starts`: by re-keyed topic and partition where to go on."""

    ends: Mapping[str, LogEnd]
    starts: Mapping[str, Mapping[int, int]]
    topic_ids: Mapping[str, str]

    def positions(
        self, plan: FeaturePlan, shards: int, clocks: Mapping[int, int]
    ) -> dict[tuple[str, int], dict[str, str | int]]:
        """Meta fields by (entity, shard); `clocks`: by partition of the plan's source, at the archive's end."""
        out: dict[tuple[str, int], dict[str, str | int]] = {}
        for entity in plan.entities:
            topic = plan.topic_of(entity.name)
            rekeyed = topic in self.starts
            ends = self.starts[topic] if rekeyed else self.ends[topic].ends
            for shard in range(shards):
                out[entity.name, shard] = {
                    "topic": topic,
                    "topic_id": self.topic_ids[topic],
                    "offset": ends.get(shard, 0),
                    "clock": UNSET_CLOCK if rekeyed else clocks.get(shard, UNSET_CLOCK),
                }
        return out


def archived_logs(
    bootstrap: str,
    plan: FeaturePlan,
    shards: int,
    group_prefix: str = "trine",
    skew_ms: int = SKEW_MS,
    *,
    client: Mapping[str, str] | None = None,
) -> ArchivedLogs:
    """As things stand now; list the warehouse's files after this, not before. Raises LogsUnreadable.

    `client`: what the brokers ask of their clients (TLS, SASL), in librdkafka's words.
    """
    kafka = {**(client or {}), "bootstrap.servers": bootstrap}
    sources = [plan.source.topic, *(label.topic for label in plan.label_sources)]
    rekeyed = sorted({plan.topic_of(e.name) for e in plan.entities} - set(sources))
    now_ms = time.time_ns() // 1_000_000
    consumer = Consumer(
        {
            **kafka,
            "group.id": f"{group_prefix}-archive",
            "client.id": f"rebuild-{uuid.uuid4().hex[:8]}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            # What a transaction that is still open wrote counts: its rows are not absorbed yet.
            "isolation.level": "read_uncommitted",
            "log_level": 0,
        }
    )
    try:
        ids = _topic_ids(kafka, [*sources, *rekeyed])
        asked = [TopicPartition(topic, p) for topic in sources for p in range(shards)]
        archived = {(tp.topic, tp.partition): max(tp.offset, 0) for tp in consumer.committed(asked, _TIMEOUT_S)}
        high = {
            (t, p): consumer.get_watermark_offsets(TopicPartition(t, p), _TIMEOUT_S)[1]
            for t in rekeyed
            for p in range(shards)
        }
        since_ms = min([now_ms, *_recorded_at(consumer, archived)]) - skew_ms
        starts: dict[str, dict[int, int]] = {t: {} for t in rekeyed}
        times = [TopicPartition(t, p, max(since_ms, 0)) for t in rekeyed for p in range(shards)]
        for tp in consumer.offsets_for_times(times, _TIMEOUT_S) if times else []:
            starts[tp.topic][tp.partition] = tp.offset if tp.offset >= 0 else high[tp.topic, tp.partition]
    except KafkaException as error:
        raise LogsUnreadable(f"Kafka at {bootstrap}: {error.args[0].str()}") from error
    finally:
        consumer.close()
    ends = {
        topic: LogEnd(log_name(topic, ids[topic]), ids[topic], {p: archived[topic, p] for p in range(shards)})
        for topic in sources
    }
    return ArchivedLogs(ends, starts, ids)


def _topic_ids(kafka: Mapping[str, str], topics: list[str]) -> dict[str, str]:
    admin = AdminClient({**kafka, "log_level": 0})
    out = {}
    for name, future in admin.describe_topics(TopicCollection(topics), request_timeout=_TIMEOUT_S).items():
        try:
            out[name] = str(future.result().topic_id)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise LogsUnreadable(f"topic {name} does not exist on {kafka['bootstrap.servers']}") from error
            raise
    return out


def _recorded_at(consumer: Consumer, offsets: Mapping[tuple[str, int], int]) -> list[int]:
    """When the messages at these offsets were recorded, milliseconds; nothing of partitions that end there."""
    consumer.assign([TopicPartition(t, p, offset) for (t, p), offset in offsets.items()])
    open_, found = set(offsets), []
    deadline = time.monotonic() + 3 * _TIMEOUT_S
    while open_:
        if time.monotonic() > deadline:
            raise LogsUnreadable(f"the logs cannot be read at the archive's end: {sorted(open_)[:3]}")
        for message in consumer.consume(1_000, 0.2):
            key = (message.topic() or "", message.partition() or 0)
            error = message.error()
            if key in open_:
                if error is None:
                    found.append(message.timestamp()[1])
                elif error.code() != KafkaError._PARTITION_EOF:
                    continue
                open_.discard(key)
                consumer.pause([TopicPartition(*key)])
    consumer.unassign()
    return found
