"""What one `consume` brought, sorted out: messages by topic as columns, ends of partitions, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import KafkaError, Message
from feature_store.admission import RECORDED_UNKNOWN
from numpy.typing import NDArray

from stream_worker.intake import Messages
from stream_worker.wire import Ints

NOWHERE = 1 << 62
"""Read position of a partition that is not ours: nothing lies beyond."""


@dataclass(slots=True)
class Consumed:
    """`ends`: (topic, partition) → offset of its end, where it was reached. `gaps`: partitions whose position the log
    does not hold."""

    topics: dict[str, Messages] = field(default_factory=dict)
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    gaps: list[tuple[str, int]] = field(default_factory=list)
    errors: list[KafkaError] = field(default_factory=list)


def sort_out(found: Sequence[Message], read_offsets: Mapping[str, Ints]) -> Consumed:
    """`read_offsets`: topic → int64[partitions], the next offset wanted of each; others are dropped."""
    out = Consumed()
    by_topic: dict[str, list[Message]] = {}
    for m in found:
        error = m.error()
        if error is None:
            by_topic.setdefault(m.topic() or "", []).append(m)
        else:
            _sort_error(out, m, error)
    for topic, messages in by_topic.items():
        n = len(messages)
        partition = np.fromiter((m.partition() for m in messages), dtype=np.int64, count=n)
        offset = np.fromiter((m.offset() for m in messages), dtype=np.int64, count=n)
        recorded = recorded_us(np.fromiter((m.timestamp()[1] for m in messages), dtype=np.int64, count=n))
        wanted = offset >= read_offsets[topic][partition]
        if not wanted.all():
            messages = [messages[i] for i in np.flatnonzero(wanted).tolist()]
            partition, offset, recorded = partition[wanted], offset[wanted], recorded[wanted]
        if messages:
            out.topics[topic] = Messages(
                topic,
                partition,
                offset,
                recorded,
                _last_timestamps(messages, partition),
                [m.key() for m in messages],
                [m.value() for m in messages],
            )
    return out


def recorded_us(timestamp_ms: Ints) -> Ints:
    """When messages were recorded, by Kafka's timestamps int64[n] (not positive where there is none): microseconds,
    the last of the millisecond, so that nobody who looked at the clock before is contradicted."""
    return np.where(timestamp_ms > 0, timestamp_ms * 1000 + 999, RECORDED_UNKNOWN)


def _last_timestamps(messages: Sequence[Message], partition: NDArray[np.int64]) -> dict[int, int]:
    """Partition → its last message's timestamp, microseconds."""
    last = {p: i for i, p in enumerate(partition.tolist())}
    return {p: messages[i].timestamp()[1] * 1000 for p, i in last.items()}


def _sort_error(out: Consumed, message: Message, error: KafkaError) -> None:
    topic, partition = message.topic(), message.partition()
    if topic is None or partition is None:
        out.errors.append(error)
    elif error.code() == KafkaError._PARTITION_EOF:
        out.ends[topic, partition] = message.offset() or 0
    elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        out.gaps.append((topic, partition))
    else:
        out.errors.append(error)
