"""What replay asks of an archive of events, whatever keeps it: a Kafka that forgets nothing, or a warehouse.

Everything is columns. Replay does no I/O of its own: who calls it passes an `Archive` in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from feature_store.definitions import FeaturePlan
from feature_store.history import EntityKeys
from feature_store.kernel import Int64s
from google.protobuf.message import Message
from trine.events.v1.events_pb2 import DecisionRecord


@dataclass(frozen=True, slots=True)
class LogExtent:
    """One topic: Kafka's id of it ("" where unknown) and, by partition, the offset after its last archived message."""

    topic_id: str
    ends: Mapping[int, int]

    @property
    def shards(self) -> int:
        return len(self.ends)


@dataclass(frozen=True, slots=True, eq=False)
class LoggedEvents:
    """Sound events of a plan's source, int64[n] each, sorted by (partition, offset); sound: parsed, valid fields,
    in their key's partition. Late and future ones are among them: replay judges them as the worker did, also by when
    they were recorded, `recorded_us` (feature_store.admission.RECORDED_UNKNOWN where the archive does not say).

    `entities`: by entity name, whom each event belongs to. `message_at(row)`: the whole event.
    """

    extent: LogExtent
    partition: Int64s
    offset: Int64s
    recorded_us: Int64s
    time_us: Int64s
    id: Int64s
    fields: Mapping[str, Int64s]
    entities: Mapping[str, EntityKeys]
    message_at: Callable[[int], Message]


@dataclass(frozen=True, slots=True, eq=False)
class LoggedRows:
    """Rows of one source that were re-keyed to an entity, int64[n] each; `offset` is that of the message they are in.

    `known_at_us` is given for labels, whose `fields` hold `value` and whose id and time are those of what they label.
    """

    keys: EntityKeys
    offset: Int64s
    time_us: Int64s
    id: Int64s
    fields: Mapping[str, Int64s]
    known_at_us: Int64s | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EntityTopic:
    """A re-keyed topic: committed rows by source name."""

    extent: LogExtent
    rows: Mapping[str, LoggedRows] = field(default_factory=dict)


class Archive(Protocol):
    """Reads what was recorded; may be asked for the same thing twice."""

    def events(self, plan: FeaturePlan) -> LoggedEvents:
        """Events of the plan's source."""

    def entity_topic(self, plan: FeaturePlan, entity: str) -> EntityTopic:
        """Committed rows of the topic that is re-keyed by `entity`."""

    def decisions(self) -> Iterator[DecisionRecord]:
        """Every decision record, in any order; one that was written twice comes twice."""
