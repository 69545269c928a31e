"""Kafka topics read from their beginning to their end as of now, committed messages only."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from trine_cli.errors import Unavailable

Advance = Callable[[str, int], None]
"""Told of (topic, messages) as they are read."""

_BATCH = 10_000
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """Kafka's own id of a topic and how many partitions it has."""

    topic_id: str
    partitions: int


class KafkaLog:
    """Reads whole topics of the Kafka at `bootstrap`. Leaves no trace there: no consumer group, nothing committed."""

    def __init__(self, bootstrap: str, patience_s: float = 30.0) -> None:
        """`patience_s`: how long Kafka may stay silent. Raises Unavailable where nothing answers."""
        self._bootstrap, self._patience_s = bootstrap, patience_s

    def describe(self, topic: str) -> TopicFacts:
        """Raises Unavailable where Kafka does not answer or has no such topic."""
        with AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 0}) as admin:
            asked = admin.describe_topics(TopicCollection([topic]), request_timeout=self._patience_s)
            try:
                found = asked[topic].result(self._patience_s)
            except TimeoutError:
                raise Unavailable(f"no Kafka answers at {self._bootstrap}") from None
            except KafkaException as error:
                raise Unavailable(f"topic {topic} on Kafka at {self._bootstrap}: {error.args[0].str()}") from error
        return TopicFacts(str(found.topic_id), len(found.partitions))

    def ends(self, topic: str) -> dict[int, int]:
        """The offset after each partition's last message, as of now. Raises Unavailable."""
        partitions = self.describe(topic).partitions
        consumer = self._consumer()
        try:
            found = {}
            for p in range(partitions):
                offsets = consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=self._patience_s)
                if offsets is None:
                    raise Unavailable(f"Kafka at {self._bootstrap} does not say where {topic}, partition {p}, ends")
                found[p] = offsets[1]
            return found
        except KafkaException as error:
            raise Unavailable(f"topic {topic} on Kafka at {self._bootstrap}: {error.args[0].str()}") from error
        finally:
            consumer.close()

    def unread(self, group: str, topics: Sequence[str]) -> int:
        """How many offsets of these topics a consumer group has not committed yet. Raises Unavailable."""
        ends = {(topic, p): end for topic in topics for p, end in self.ends(topic).items()}
        consumer = self._consumer(group)
        try:
            asked = [TopicPartition(topic, p) for topic, p in ends]
            found = consumer.committed(asked, timeout=self._patience_s)
            return sum(max(ends[tp.topic, tp.partition] - max(tp.offset, 0), 0) for tp in found)
        except KafkaException as error:
            raise Unavailable(f"group {group} on Kafka at {self._bootstrap}: {error.args[0].str()}") from error
        finally:
            consumer.close()

    def read(
        self, topic: str, until: Mapping[int, int] | None = None, ends: dict[int, int] | None = None
    ) -> Iterator[Message]:
        """Every committed message, in order within a partition: those below the offsets `until`, by partition, or up
        to where each partition ends when reading gets there.

        `ends` is filled with the offset after each partition's last message. Raises Unavailable.
        """
        partitions = self.describe(topic).partitions
        consumer = self._consumer()
        left = set(range(partitions)) if until is None else {p for p, end in until.items() if end > 0}
        limit = {} if until is None else until
        try:
            consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in sorted(left)])
            for message in self._messages(consumer, topic, left, {} if ends is None else ends):
                partition, offset = message.partition() or 0, message.offset() or 0
                end = limit.get(partition)
                if end is None or offset < end:
                    yield message
                if end is not None and offset + 1 >= end:
                    left.discard(partition)
        finally:
            consumer.close()

    def _consumer(self, group: str = "") -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                # A client needs the name of a group to read; it never joins it.
                "group.id": group or f"trine-log-{uuid.uuid4().hex}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "queued.max.messages.kbytes": 65_536,
                "log_level": 0,
            }
        )

    def _messages(self, consumer: Consumer, topic: str, left: set[int], ends: dict[int, int]) -> Iterator[Message]:
        """Messages of the partitions in `left`, which are taken out of it as they end."""
        heard = time.monotonic()
        while left:
            messages = consumer.consume(_BATCH, _POLL_S)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > self._patience_s:
                raise Unavailable(f"Kafka at {self._bootstrap} has been silent for {self._patience_s:g} s on {topic}")
            for message in messages:
                error = message.error()
                if error is None:
                    if message.partition() in left:
                        yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    if message.partition() in left:
                        ends[message.partition() or 0] = message.offset() or 0
                        left.discard(message.partition() or 0)
                elif not error.retriable():
                    raise Unavailable(f"Kafka at {self._bootstrap}, topic {topic}: {error.str()}")
