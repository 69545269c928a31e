"""Dead letters: what could not be used, with the reason, on a topic of its own to be looked at and sent again.

A letter's id says where the message lies, so reading it twice letters it once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Producer
from trine.events.v1.events_pb2 import DeadLetter

from stream_worker.intake import Messages, Refused

TOPIC = "trine.dead-letters"
HEADERS = [("trine-type", b"trine.events.v1.DeadLetter"), ("trine-schema", b"1")]
MAX_VALUE_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter's content; see trine.events.v1.DeadLetter."""

    topic: str
    partition: int
    offset: int
    reason: str
    field: str
    detail: str
    key: bytes
    value: bytes

    def message(self) -> bytes:
        """Serialised, with the time of now. A value over MAX_VALUE_BYTES is cut, and the detail says so."""
        detail = self.detail
        if len(self.value) > MAX_VALUE_BYTES:
            detail += f" (the first {MAX_VALUE_BYTES} of its {len(self.value)} bytes are kept)"
        return DeadLetter(
            dead_letter_id=f"{self.topic}/{self.partition}/{self.offset}",
            topic=self.topic,
            partition=self.partition,
            offset=self.offset,
            reason=self.reason,
            field=self.field,
            detail=detail,
            key=self.key,
            value=self.value[:MAX_VALUE_BYTES],
            found_at_us=time.time_ns() // 1000,
        ).SerializeToString()


def letters_of(messages: Messages, refused: Sequence[Refused]) -> list[Letter]:
    """A letter for each refused message."""
    return [
        Letter(
            messages.topic,
            int(messages.partition[r.row]),
            int(messages.offset[r.row]),
            r.reason,
            r.field,
            r.detail,
            messages.keys[r.row] or b"",
            messages.values[r.row] or b"",
        )
        for r in refused
    ]


def produce(producer: Producer, letters: Sequence[Letter]) -> list[KafkaError]:
    """Hand letters to the producer. The list fills with what could not be delivered, once they are flushed."""
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    for letter in letters:
        while True:
            try:
                producer.produce(TOPIC, letter.message(), key=letter.key, headers=list(HEADERS), on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    return failed


def deliver(producer: Producer, letters: Sequence[Letter], timeout_s: float) -> None:
    """Produce letters and wait until Kafka has them. Raises KafkaException where it does not."""
    failed = produce(producer, letters)
    left = producer.flush(timeout_s)
    if failed:
        raise KafkaException(failed[0])
    if left:
        raise KafkaException(
            KafkaError(KafkaError._TIMED_OUT, f"{left} dead letters not acknowledged in {timeout_s} s")
        )
