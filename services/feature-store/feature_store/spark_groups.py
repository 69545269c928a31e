"""What Spark's Python workers do with whole batches and groups of Arrow columns. No Spark here, and nothing by row.

Instances are pickled to the executors; `schema` is what they add, or give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.assemble import request_matrix
from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.history import id64_column, integer_features
from feature_store.kernel import LAST_ID, Int64s, Labels, Points, Queries, view_features, window_sums
from feature_store.source_files import event_files, label_files
from feature_store.warehouse import Warehouse

KEY, TIME, ID, KNOWN_AT, VALUE = "_key", "_time_us", "_id", "_known_at_us", "_value"
TEXT_ID = "_text_id"
_BATCH = 1 << 16
T = TypeVar("T")

Range = tuple[int, int]
"""From a time to before a time, microseconds."""


def point_columns(view: FeatureView) -> pa.Schema:
    """Events and labels of a view in one frame: a label's row has KNOWN_AT and VALUE (0 or 1) and its event's KEY,
    TIME and ID; an event's row has the view's columns and nulls there."""
    columns = {KEY: pa.string(), TIME: pa.int64(), ID: pa.int64(), **dict.fromkeys(view.columns, pa.int64())}
    return pa.schema({**columns, KNOWN_AT: pa.int64(), VALUE: pa.int64()})


class TaskReader(Protocol):
    """Reads files in executors: numbers of tasks → batches of `schema`."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def tasks(self) -> int: ...
    def __call__(self, tasks: Iterable[pa.RecordBatch], /) -> Iterator[pa.RecordBatch]: ...


@dataclass(frozen=True)
class EventReader:
    """Numbers of tasks → the events in their `ranges` (from, to before; microseconds), as a view's points; where the
    view has labels, with their ids as text for a join."""

    uri: str
    plan: FeaturePlan
    view: FeatureView
    ranges: tuple[Range, ...]

    @property
    def tasks(self) -> int:
        return len(self.ranges)

    @property
    def schema(self) -> pa.Schema:
        text = [pa.field(TEXT_ID, pa.string())] if self.view.label is not None else []
        return pa.schema([*point_columns(self.view), *text])

    def __call__(self, tasks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        source, files = self.plan.source, event_files(self.plan)
        fields = [self.view.entity.key, source.id, files.time_column, *self.view.columns]
        warehouse = Warehouse(self.uri)
        for begin_us, end_us in chosen(self.ranges, tasks):
            events = warehouse.load(files, begin_us, end_us, columns=list(dict.fromkeys(fields)))
            missing = pa.nulls(events.num_rows, pa.int64())
            columns = {
                KEY: events.column(self.view.entity.key),
                TIME: events.column(files.time_column).cast(pa.int64()),
                ID: id64_column(events.column(source.id)),
                **{name: events.column(name) for name in self.view.columns},
                KNOWN_AT: missing,
                VALUE: missing,
                TEXT_ID: events.column(source.id),
            }
            yield from _batches(columns, self.schema)


@dataclass(frozen=True)
class LabelReader:
    """Numbers of tasks → the labels of a view that became known in their `ranges`: the labelled event's id as text,
    when, and what."""

    uri: str
    view: FeatureView
    ranges: tuple[Range, ...]

    @property
    def tasks(self) -> int:
        return len(self.ranges)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({TEXT_ID: pa.string(), KNOWN_AT: pa.int64(), VALUE: pa.int64()})

    def __call__(self, tasks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        assert self.view.label is not None
        files = label_files(self.view.label)
        warehouse = Warehouse(self.uri)
        for begin_us, end_us in chosen(self.ranges, tasks):
            labels = warehouse.load(
                files, begin_us, end_us, columns=[files.id_column, files.time_column, self.view.label.value]
            )
            columns = {
                TEXT_ID: labels.column(files.id_column),
                KNOWN_AT: labels.column(files.time_column).cast(pa.int64()),
                VALUE: labels.column(self.view.label.value).cast(pa.int64()),
            }
            yield from _batches(columns, self.schema)


@dataclass(frozen=True)
class RowColumns:
    """Rows → the same with their time in microseconds, their id as a number, and the request's own features."""

    plan: FeaturePlan
    features: tuple[str, ...]
    has_id: bool

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the rows that these features need."""
        found = [f.field for f in self.plan.request_features if f.name in self.features and f.field]
        return tuple(dict.fromkeys(found))

    @property
    def schema(self) -> pa.Schema:
        names = [f.name for f in self.plan.request_features if f.name in self.features]
        return pa.schema({TIME: pa.int64(), ID: pa.int64(), **dict.fromkeys(names, pa.int64())})

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        time = self.plan.source.time.removesuffix("_us")
        for batch in batches:
            rows = pa.Table.from_batches([batch])
            time_us = _int64s(rows.column(time))
            columns: dict[str, pa.Array | pa.ChunkedArray | NDArray[np.int64]] = {
                TIME: time_us,
                ID: self._ids(rows),
            }
            if len(self.schema) > 2:
                zeros = np.zeros(batch.num_rows, dtype=np.int64)
                fields = {f: _int64s(rows.column(f)) if f in self.fields else zeros for f in self.plan.source.fields}
                matrix = request_matrix(self.plan, time_us, fields)
                for i, feature in enumerate(self.plan.request_features):
                    if feature.name in self.features:
                        columns[feature.name] = matrix[:, i].astype(np.int64)
            kept = {name: rows.column(name) for name in rows.column_names if name not in columns}
            yield from pa.table({**kept, **columns}).combine_chunks().to_batches()

    def _ids(self, rows: pa.Table) -> Int64s:
        if not self.has_id:
            return np.full(rows.num_rows, LAST_ID, dtype=np.int64)
        ids = rows.column(self.plan.source.id)
        if ids.null_count == 0:
            return id64_column(ids)
        there = np.asarray(pc.is_valid(ids).to_numpy(), dtype=np.bool_)
        out = np.full(rows.num_rows, LAST_ID, dtype=np.int64)
        out[there] = id64_column(ids.drop_null())
        return out


@dataclass(frozen=True)
class ViewOfGroup:
    """One group's rows and points → the rows with the view's features (those named)."""

    view: FeatureView
    features: tuple[str, ...]
    dropped: str
    integers: tuple[str, ...]

    @classmethod
    def of(cls, plan: FeaturePlan, view: FeatureView, wanted: Sequence[str], dropped: str) -> ViewOfGroup:
        """`dropped`: a column of the rows that is not given back."""
        features = tuple(name for name in view.features if name in wanted)
        return cls(view, features, dropped, tuple(integer_features(plan) & set(features)))

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({n: pa.int64() if n in self.integers else pa.float64() for n in self.features})

    def __call__(self, rows: pa.Table, given: pa.Table) -> pa.Table:
        rows = rows.drop_columns([self.dropped])
        keys, points = points_of(self.view, given)
        group = pc.index_in(rows.column(self.view.entity.key), value_set=pa.array(keys, pa.string()))
        # An entity without events, or no entity, is a group in which nothing is.
        group = np.asarray(pc.fill_null(group, len(keys)).to_numpy(), dtype=np.int64)
        own = _int64s(rows.column(ID)) if self.view.delay_us == 0 else np.full(len(group), LAST_ID, dtype=np.int64)
        queries = Queries(group, _int64s(rows.column(TIME)), own)
        sums = window_sums(points, queries, self.view.windows_us, self.view.delay_us)
        matrix = view_features(self.view, sums)
        for i, name in enumerate(self.view.features):
            if name in self.features:
                values = matrix[:, i].astype(np.int64) if name in self.integers else matrix[:, i]
                rows = rows.append_column(name, pa.array(values))
        return rows


def points_of(view: FeatureView, given: pa.Table) -> tuple[pa.Array, Points]:
    """Rows of `point_columns` in any order → their distinct keys, and points whose groups are places in them.

    An event that is there twice (same key, time and id) counts once.
    """
    encoded = given.column(KEY).combine_chunks().dictionary_encode()
    code = np.asarray(encoded.indices, dtype=np.int64)
    time_us, id_ = _int64s(given.column(TIME)), _int64s(given.column(ID))
    is_label = np.asarray(pc.is_valid(given.column(KNOWN_AT)).to_numpy(), dtype=np.bool_)
    labels = None
    if view.label is not None:
        at = np.flatnonzero(is_label)
        known = _int64s(pc.fill_null(given.column(KNOWN_AT), 0))[at]
        value = _int64s(pc.fill_null(given.column(VALUE), 0))[at]
        by = np.lexsort((value, known, id_[at], time_us[at], code[at]))
        at, known, value = at[by], known[by], value[by]
        labels = Labels(code[at], id_[at], time_us[at], known, value)
    rows = np.flatnonzero(~is_label)
    rows = rows[np.lexsort((id_[rows], time_us[rows], code[rows]))]
    if len(rows):
        again = (np.diff(code[rows]) == 0) & (np.diff(time_us[rows]) == 0) & (np.diff(id_[rows]) == 0)
        rows = rows[np.concatenate(([True], ~again))]
    columns: Mapping[str, Int64s] = {name: _int64s(pc.fill_null(given.column(name), 0))[rows] for name in view.columns}
    return encoded.dictionary, Points(code[rows], time_us[rows], id_[rows], columns, labels)


def chosen(of_tasks: Sequence[T], tasks: Iterable[pa.RecordBatch]) -> Iterator[T]:
    """What belongs to the tasks whose numbers are in the batches."""
    for batch in tasks:
        yield from (of_tasks[i] for i in batch.column(0).to_pylist())


def _batches(columns: Mapping[str, pa.Array | pa.ChunkedArray | Int64s], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    yield from batches_of(pa.table({name: columns[name] for name in schema.names}).cast(schema))


def batches_of(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """In pieces that Spark likes."""
    yield from table.combine_chunks().to_batches(max_chunksize=_BATCH)


def _int64s(column: pa.ChunkedArray) -> Int64s:
    return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)
