"""A warehouse as the archive that decisions are replayed from: what the worker's role `archive` wrote of their topics.

Of a topic that was made anew the life that was written to last is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
from batch_scorer.archive import EntityTopic, LogExtent, LoggedEvents
from feature_store.definitions import FeaturePlan
from feature_store.history import EntityKeys, id64_column
from feature_store.kernel import Int64s
from feature_store.source_files import SourceFiles, times_us
from feature_store.warehouse import PARTITIONS_KEY, TOPIC_ID_KEY, Warehouse, WarehouseFile
from feature_store.warehouse_messages import messages_of
from feature_store.warehouse_rows import OFFSET, PARTITION
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from stream_worker.archive_columns import archived_schema
from stream_worker.archive_topics import DECISIONS, RECORDED_AT, ArchivedTopic, archived_topics
from stream_worker.consumed import recorded_us
from stream_worker.streams import PlanStreams
from trine.events.v1.events_pb2 import DecisionRecord

from trine_cli.errors import Unavailable
from trine_cli.kafka_log import Advance
from trine_cli.rekeyed_rows import entity_topic

_BLOCK = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class _Log:
    """One life of a topic: every archived row, repeats too, by (partition, offset); and how far it is archived."""

    table: pa.Table
    extent: LogExtent


class WarehouseArchive:
    """batch_scorer.archive.Archive over a warehouse. Raises feature_store's DatasetError and Unavailable."""

    def __init__(self, warehouse: str, advance: Advance = lambda source, rows: None) -> None:
        self._warehouse = Warehouse(warehouse)
        self._advance = advance

    def events(self, plan: FeaturePlan) -> LoggedEvents:
        archived = self._topic(plan, plan.source.topic)
        log = self._log(archived)
        table = log.table
        assert archived.descriptor is not None
        return LoggedEvents(
            extent=log.extent,
            partition=_integers(table, PARTITION),
            offset=_integers(table, OFFSET),
            recorded_us=_recorded(table),
            time_us=times_us(table, archived.files.time_column),
            id=id64_column(table.column(archived.files.id_column)),
            fields={name: _integers(table, name) for name in plan.source.fields},
            entities={e.name: _keys(table.column(e.key)) for e in plan.entities},
            message_at=_message_at(table, archived.descriptor),
        )

    def entity_topic(self, plan: FeaturePlan, entity: str) -> EntityTopic:
        target = PlanStreams.of(plan).derived[plan.topic_of(entity)]
        log = self._log(self._topic(plan, target.topic))
        places = (_integers(log.table, PARTITION).tolist(), _integers(log.table, OFFSET).tolist())
        values = (v.as_py() for v in log.table.column("value"))
        return entity_topic(target, log.extent, zip(*places, values, strict=True))

    def decisions(self) -> Iterator[DecisionRecord]:
        archived = next(t for t in archived_topics(None) if t.topic == DECISIONS.topic)
        source = _whole(archived)
        for files in self._warehouse.archived(source).values():
            for file in files:
                table = self._warehouse.read(file, source, archived.files.schema.names)
                for record in messages_of(table, DecisionRecord.DESCRIPTOR):
                    assert isinstance(record, DecisionRecord)
                    yield record
                self._advance(archived.folder, table.num_rows)

    def _topic(self, plan: FeaturePlan, topic: str) -> ArchivedTopic:
        return next(t for t in archived_topics(plan) if t.topic == topic)

    def _log(self, archived: ArchivedTopic) -> _Log:
        source = _whole(archived)
        logs = self._warehouse.archived(source)
        if not logs:
            raise Unavailable(
                f"{self._warehouse.uri} has nothing archived in {source.folder}/: does the worker's role archive run?"
            )
        name, files = list(logs.items())[-1]
        table = pa.concat_tables([self._read(file, source) for file in files])
        order = np.lexsort((_integers(table, OFFSET), _integers(table, PARTITION)))
        footer = files[-1].footer
        ends = dict.fromkeys(range(int(footer.get(PARTITIONS_KEY, b"0"))), 0) | self._warehouse.ends(source)[name]
        return _Log(table.take(pa.array(order)), LogExtent(footer.get(TOPIC_ID_KEY, b"").decode(), ends))

    def _read(self, file: WarehouseFile, source: SourceFiles) -> pa.Table:
        table = self._warehouse.read(file, source)
        self._advance(source.folder, table.num_rows)
        return table


def _whole(archived: ArchivedTopic) -> SourceFiles:
    """With the places of rows in their log."""
    own = archived.files
    optional = (*own.optional, RECORDED_AT.name)
    return replace(own, schema=archived_schema(archived), optional=optional)


def _message_at(table: pa.Table, descriptor: Descriptor) -> Callable[[int], Message]:
    """Rows as messages, a block at a time."""

    @lru_cache(maxsize=16)
    def block(number: int) -> list[Message]:
        return list(messages_of(table.slice(number * _BLOCK, _BLOCK), descriptor))

    return lambda row: block(row // _BLOCK)[row % _BLOCK]


def _recorded(table: pa.Table) -> Int64s:
    milliseconds = table.column(RECORDED_AT.name).cast(pa.int64()).fill_null(0)
    return recorded_us(np.asarray(milliseconds.to_numpy(), dtype=np.int64))


def _keys(column: pa.ChunkedArray) -> EntityKeys:
    coded = column.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    return EntityKeys(np.asarray(coded.indices, dtype=np.int64), coded.dictionary.to_pylist())


def _integers(table: pa.Table, column: str) -> Int64s:
    return np.asarray(table.column(column).cast(pa.int64()).to_numpy(), dtype=np.int64)
