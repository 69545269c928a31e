"""Kafka as the archive that decisions are replayed from: its topics keep every event from the beginning.

Messages are taken in by the worker's own functions, so both agree on which of them are sound.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from batch_scorer.archive import EntityTopic, LogExtent, LoggedEvents
from feature_store.definitions import FeaturePlan
from feature_store.history import EntityKeys
from stream_worker.consumed import recorded_us
from stream_worker.intake import NO_LATENESS, Messages, take_in
from stream_worker.streams import PlanStreams
from trine.events.v1.events_pb2 import DecisionRecord

from trine_cli.kafka_log import Advance, KafkaLog
from trine_cli.rekeyed_rows import entity_topic

DECISIONS = "trine.decisions"
_STEP = 5_000
_NO_LIMIT_US = 1 << 61


class KafkaArchive:
    """batch_scorer.archive.Archive over the Kafka at `bootstrap`. Raises trine_cli.errors.Unavailable."""

    def __init__(self, bootstrap: str, advance: Advance = lambda topic, messages: None) -> None:
        self._log = KafkaLog(bootstrap)
        self._advance = advance

    def events(self, plan: FeaturePlan) -> LoggedEvents:
        stream = PlanStreams.of(plan).sources[plan.source.topic]
        messages, extent = self._messages(stream.topic)
        # Nothing is late or ahead here: replay judges that, event by event.
        taken, _ = take_in(
            messages, stream, [e.key for e in plan.entities], {}, extent.shards, NO_LATENESS, _NO_LIMIT_US
        )
        values, at = messages.values, taken.row.tolist()
        return LoggedEvents(
            extent=extent,
            partition=taken.partition,
            offset=messages.offset[taken.row],
            recorded_us=messages.recorded_us[taken.row],
            time_us=taken.time_us,
            id=taken.id,
            fields=taken.fields,
            entities={e.name: EntityKeys(taken.keys[e.key].index, taken.keys[e.key].values) for e in plan.entities},
            message_at=lambda row: stream.layout.message.FromString(values[at[row]] or b""),
        )

    def entity_topic(self, plan: FeaturePlan, entity: str) -> EntityTopic:
        target = PlanStreams.of(plan).derived[plan.topic_of(entity)]
        messages, extent = self._messages(target.topic)
        places = zip(messages.partition.tolist(), messages.offset.tolist(), messages.values, strict=True)
        return entity_topic(target, extent, places)

    def decisions(self) -> Iterator[DecisionRecord]:
        # Up to now and no further: what these decisions were made of is in the topics that are read afterwards.
        until = self._log.ends(DECISIONS)
        count = 0
        for message in self._log.read(DECISIONS, until):
            yield DecisionRecord.FromString(message.value() or b"")
            count += 1
            if count % _STEP == 0:
                self._advance(DECISIONS, _STEP)
        self._advance(DECISIONS, count % _STEP)

    def _messages(self, topic: str) -> tuple[Messages, LogExtent]:
        facts = self._log.describe(topic)
        ends: dict[int, int] = {}
        partition, offset, recorded_ms, values = [], [], [], []
        for message in self._log.read(topic, ends=ends):
            recorded_ms.append(message.timestamp()[1])
            partition.append(message.partition())
            offset.append(message.offset())
            values.append(message.value())
            if len(values) % _STEP == 0:
                self._advance(topic, _STEP)
        self._advance(topic, len(values) % _STEP)
        read = Messages(
            topic=topic,
            partition=np.array(partition, dtype=np.int64),
            offset=np.array(offset, dtype=np.int64),
            recorded_us=recorded_us(np.array(recorded_ms, dtype=np.int64)),
            last_us={},
            keys=[],
            values=values,
        )
        return read, LogExtent(facts.topic_id, ends)
