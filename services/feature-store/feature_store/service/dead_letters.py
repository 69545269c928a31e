"""Counts dead letters by reason, from the beginning of their topic on, in a thread; keeps figures, not letters.

A letter written twice (the worker was killed between writing and committing) lies close behind the first one, so a
bounded memory of recent ids is enough to count it once.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition
from google.protobuf.message import DecodeError
from prometheus_client import Gauge
from trine.events.v1.events_pb2 import DeadLetter

from feature_store.service.log_ends import report_error

REASONS = frozenset({"malformed", "invalid", "late", "future", "id_conflict"})
OTHER = "other"
_REMEMBERED = 65_536
_POLL_S = 0.25
_TOPIC_EVERY_S = 2.0


class DeadLetterCounter:
    """`counts` is the figures so far; `run` keeps them up to date. Waits for the topic where it does not exist."""

    def __init__(self, kafka: Mapping[str, str], topic: str, gauge: Gauge | None = None) -> None:
        self._kafka, self._topic, self._gauge = dict(kafka), topic, gauge
        self._counts: Counter[str] = Counter()
        self._recent: OrderedDict[str, None] = OrderedDict()

    @property
    def counts(self) -> dict[str, int]:
        """Reason → letters; reasons that nobody documents are "other"."""
        return dict(self._counts)

    def run(self, stop: threading.Event) -> None:
        """Read until `stop` is set."""
        consumer = Consumer(
            {
                **self._kafka,
                # It joins no group and commits nothing: every process counts for itself.
                "group.id": "trine-dead-letter-figures",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "error_cb": report_error,
                # Letters may be large; figures are in no hurry.
                "queued.max.messages.kbytes": 8_192,
                "fetch.message.max.bytes": 1_048_576,
            }
        )
        try:
            if self._assigned(consumer, stop):
                while not stop.is_set():
                    for message in consumer.consume(500, _POLL_S):
                        self._count(message)
        finally:
            consumer.close()

    def _assigned(self, consumer: Consumer, stop: threading.Event) -> bool:
        """True once all partitions are assigned, from their beginnings; False where told to stop before."""
        while not stop.is_set():
            try:
                found = consumer.list_topics(self._topic, timeout=2.0).topics[self._topic].partitions
            except KafkaException:
                found = {}
            if found:
                consumer.assign([TopicPartition(self._topic, p, OFFSET_BEGINNING) for p in found])
                return True
            stop.wait(_TOPIC_EVERY_S)
        return False

    def _count(self, message: Message) -> None:
        if message.error() is not None:
            return
        try:
            letter = DeadLetter.FromString(message.value() or b"")
        except DecodeError:
            letter = DeadLetter()
        name = letter.dead_letter_id or f"{message.partition()}/{message.offset()}"
        if name in self._recent:
            return
        self._recent[name] = None
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        reason = letter.reason if letter.reason in REASONS else OTHER
        self._counts[reason] += 1
        if self._gauge is not None:
            self._gauge.labels(reason).set(self._counts[reason])
