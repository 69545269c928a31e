"""Past events and labels as arrays: what offline features, rebuilt state and replayed decisions are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.definitions import Count, FeaturePlan, FeatureView, LabelSource, RequestFeature, Sum
from feature_store.ids import id64
from feature_store.kernel import Int64s, Labels, Points


@dataclass(frozen=True, slots=True)
class EntityKeys:
    """Which entity each event belongs to: `code` int64[n] into the distinct `keys`."""

    code: Int64s
    keys: list[str]


@dataclass(frozen=True, slots=True)
class History:
    """Events of a plan's source, int64[n] each, and the labels on them: `row` is the labelled event, int64[m]."""

    time_us: Int64s
    id: Int64s
    fields: Mapping[str, Int64s]
    entities: Mapping[str, EntityKeys]
    labels: Mapping[str, LabelRows]


@dataclass(frozen=True, slots=True)
class LabelRows:
    row: Int64s
    known_at_us: Int64s
    value: Int64s


def history_of(plan: FeaturePlan, events: pa.Table, labels: Mapping[str, pa.Table]) -> History:
    """The history in tables whose columns are named as the plan's sources name them.

    Times are timestamp[us] columns named without `_us`. Labels on events that are not in `events` are left out.
    """
    source = plan.source
    return History(
        time_us=_times(events, source.time),
        id=id64_column(events.column(source.id)),
        fields={name: _integers(events, name) for name in source.fields},
        entities={e.name: _entity_keys(events.column(e.key)) for e in plan.entities},
        labels={label.name: _label_rows(label, events, labels[label.name]) for label in plan.label_sources},
    )


def view_points(view: FeatureView, history: History) -> tuple[Points, NDArray[np.intp]]:
    """The view's points, group = entity code; and the order: row of `history` for each point."""
    code = history.entities[view.entity.name].code
    order = np.lexsort((history.id, history.time_us, code))
    labels = None
    if view.label is not None:
        rows = history.labels[view.label.name]
        at = rows.row
        labels = Labels(code[at], history.id[at], history.time_us[at], rows.known_at_us, rows.value)
        by = np.lexsort((labels.value, labels.known_at_us, labels.id, labels.time_us, labels.group))
        labels = Labels(*(getattr(labels, n)[by] for n in ("group", "id", "time_us", "known_at_us", "value")))
    points = Points(
        group=code[order],
        time_us=history.time_us[order],
        id=history.id[order],
        columns={name: history.fields[name][order] for name in view.columns},
        labels=labels,
    )
    return points, order


def id64_column(column: pa.ChunkedArray) -> Int64s:
    """`ids.id64` of a string column, int64[n]; numeric ids are cast by Arrow, others one by one."""
    strings = column.cast(pa.large_string())
    numeric = pc.match_substring_regex(strings, r"^(0|[1-9][0-9]{0,17})$")
    out = np.asarray(pc.fill_null(pc.if_else(numeric, strings, None).cast(pa.int64()), -1).to_numpy(), dtype=np.int64)
    rest = np.flatnonzero(out < 0)
    if len(rest):
        out = out.copy()
        out[rest] = [id64(text) for text in strings.take(pa.array(rest)).to_pylist()]
    return out


def integer_features(plan: FeaturePlan) -> set[str]:
    """Names of the features that are whole numbers."""
    whole = {f.name for f in plan.request_features if isinstance(f, RequestFeature)}
    for view in plan.views:
        kinds = [a for _ in view.windows for a in view.aggregations]
        whole |= {name for name, a in zip(view.features, kinds, strict=True) if isinstance(a, Count | Sum)}
    return whole


def _times(table: pa.Table, name: str) -> Int64s:
    return np.asarray(table.column(name.removesuffix("_us")).cast(pa.int64()).to_numpy(), dtype=np.int64)


def _integers(table: pa.Table, name: str) -> Int64s:
    return np.asarray(table.column(name).cast(pa.int64()).to_numpy(), dtype=np.int64)


def _entity_keys(column: pa.ChunkedArray) -> EntityKeys:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return EntityKeys(np.asarray(encoded.indices, dtype=np.int64), encoded.dictionary.to_pylist())


def _label_rows(label: LabelSource, events: pa.Table, table: pa.Table) -> LabelRows:
    at = pc.index_in(table.column(label.id), value_set=events.column(label.labels.id).combine_chunks())
    found = np.asarray(pc.is_valid(at))
    row = np.asarray(pc.fill_null(at, 0).to_numpy(), dtype=np.int64)[found]
    value = np.asarray(table.column(label.value).cast(pa.int8()).to_numpy(), dtype=np.int64)[found]
    return LabelRows(row, _times(table, label.known_at)[found], value)
