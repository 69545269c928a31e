"""Events and labels of an archive as the worker took them from its log: judged in the log's order, each once.

The archive keeps whatever was a sound message; what came too late, or lies too far ahead, the worker refused. The same
judgement over the same log gives the same rows, and the clock of each partition at the archive's end. Days' own files
have no log: they are history from before it, and all of it counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store import admission
from feature_store.definitions import FeaturePlan, FeatureView, LabelSource
from feature_store.history import id64_column
from feature_store.source_files import SourceFiles, event_files, label_files, times_us
from feature_store.spark_groups import ID, KEY, KNOWN_AT, TIME, VALUE, point_columns
from feature_store.warehouse import Warehouse, WarehouseFile
from feature_store.warehouse_rows import OFFSET, PARTITION

LOG, RECORDED, CLOCK = "_log", "_recorded_us", "_clock_us"
_RECORDED_AT = "_recorded_at"
_NO_LATENESS = 1 << 62

PLACE_COLUMNS = pa.schema({LOG: pa.string(), PARTITION: pa.int32(), OFFSET: pa.int64(), RECORDED: pa.int64()})


@dataclass(frozen=True, slots=True)
class LogEnd:
    """How far a topic's log is archived: `ends`, by partition the offset below which everything is.

    `log`: its name in the archive (warehouse_names.log_name); `topic_id`: Kafka's own.
    """

    log: str
    topic_id: str
    ends: Mapping[int, int]


@dataclass(frozen=True)
class ArchivedSource:
    """A plan's events, or the labels of one of its label sources, in an archive that ends at `end`."""

    plan: FeaturePlan
    label: LabelSource | None
    end: LogEnd

    @property
    def files(self) -> SourceFiles:
        """A label's archived rows say what they label; those in days' own files need not."""
        return event_files(self.plan) if self.label is None else label_files(self.label)

    @property
    def extra(self) -> pa.Schema:
        """Columns that only archived files are sure to have; null for rows of others."""
        if self.label is None:
            return pa.schema([])
        keys = {view.entity.key: pa.string() for view in self.plan.views if view.label == self.label}
        return pa.schema({**keys, self.label.time.removesuffix("_us"): pa.timestamp("us", tz="UTC")})

    @property
    def schema(self) -> pa.Schema:
        """Of `rows`."""
        return pa.schema([*self.files.schema, *self.extra, *PLACE_COLUMNS])

    def rows(self, warehouse: Warehouse, file: WarehouseFile) -> pa.Table:
        """A planned file's rows below the archive's end. Raises DatasetError, FileNotFoundError."""
        files = self.files
        if not file.archived:
            table = warehouse.read(file, files)
            for field in [*self.extra, *PLACE_COLUMNS]:
                empty = {LOG: "", PARTITION: -1, OFFSET: -1, RECORDED: admission.RECORDED_UNKNOWN}.get(field.name)
                column = pa.array([empty], field.type).take(pa.array(np.zeros(table.num_rows, np.int64)))
                table = table.append_column(field, column)
            return table
        schema = pa.schema([*files.schema, *self.extra, pa.field(_RECORDED_AT, pa.timestamp("ms", tz="UTC"))])
        files = replace(files, schema=schema, optional=(*files.optional, _RECORDED_AT))
        table = warehouse.read(file, files, places=True)
        if file.log == self.end.log:
            partition = np.asarray(table.column(PARTITION).to_numpy())
            ends = np.zeros(int(partition.max(initial=0)) + 1, dtype=np.int64)
            for p, end in self.end.ends.items():
                if p < len(ends):
                    ends[p] = end
            table = table.filter(pa.array(np.asarray(table.column(OFFSET).to_numpy()) < ends[partition]))
        recorded = pc.multiply(table.column(_RECORDED_AT).cast(pa.int64()), 1_000)
        columns = {name: table.column(name) for name in table.column_names}
        columns[LOG] = pa.array([file.log]).take(pa.array(np.zeros(table.num_rows, np.int64)))
        columns[RECORDED] = pc.fill_null(recorded, admission.RECORDED_UNKNOWN)
        return pa.table({name: columns[name] for name in self.schema.names}).cast(self.schema)

    def admitted(self, rows: pa.Table) -> pa.Table:
        """Of the rows of one log's partition, in any order: those that the worker took, each id once (of labels: each
        different row), with the partition's clock at the end as CLOCK."""
        offset = np.asarray(rows.column(OFFSET).to_numpy())
        log = rows.column(LOG)[0].as_py() if rows.num_rows else ""
        clock = admission.UNSET_CLOCK
        if log:
            rows = rows.take(pa.array(np.argsort(offset, kind="stable")))
            recorded = np.asarray(rows.column(RECORDED).to_numpy())
            times = times_us(rows, self.files.time_column)
            lateness = self.plan.lateness_us if self.label is None else _NO_LATENESS
            verdict, clock = admission.judge(times, recorded, clock, lateness, self.plan.max_step_us)
            rows = rows.filter(pa.array(verdict == admission.OK))
        if self.label is None and log:
            ids = rows.column(self.plan.source.id)
            first = pa.table({"id": ids, "row": np.arange(rows.num_rows)}).group_by("id").aggregate([("row", "min")])
            rows = rows.take(pa.array(np.sort(np.asarray(first.column("row_min").to_numpy()))))
        return rows.append_column(CLOCK, pa.array(np.full(rows.num_rows, clock, dtype=np.int64)))


def all_admitted(source: ArchivedSource, warehouse: Warehouse) -> tuple[pa.Table, dict[int, int]]:
    """Everything the worker took, in one process; and by partition of the newest log its clock."""
    files = warehouse.files(source.files)
    tables = [source.rows(warehouse, file) for file in files]
    rows = pa.concat_tables(tables) if tables else source.schema.empty_table()
    by = rows.select([LOG, PARTITION]).append_column("row", pa.array(np.arange(rows.num_rows)))
    parts, clocks = [], {}
    for group in by.group_by([LOG, PARTITION]).aggregate([("row", "list")]).to_pylist():
        part = source.admitted(rows.take(pa.array(group["row_list"])))
        if group[LOG] == source.end.log and part.num_rows:
            clocks[group[PARTITION]] = part.column(CLOCK)[0].as_py()
        parts.append(part)
    return (pa.concat_tables(parts) if parts else source.admitted(rows)), clocks


def event_points(plan: FeaturePlan, view: FeatureView, events: pa.Table) -> pa.Table:
    """Events as a view's points, columns as `spark_groups.point_columns` says."""
    missing = pa.nulls(events.num_rows, pa.int64())
    columns = {
        KEY: events.column(view.entity.key),
        TIME: events.column(event_files(plan).time_column).cast(pa.int64()),
        ID: id64_column(events.column(plan.source.id)),
        **{name: events.column(name) for name in view.columns},
        KNOWN_AT: missing,
        VALUE: missing,
    }
    return pa.table({name: columns[name] for name in point_columns(view).names})


def label_points(view: FeatureView, labels: pa.Table) -> pa.Table:
    """Labels that say what they label, as a view's points; those that do not are left out."""
    assert view.label is not None
    labels = labels.filter(pc.is_valid(labels.column(view.entity.key)))
    missing = pa.nulls(labels.num_rows, pa.int64())
    columns = {
        KEY: labels.column(view.entity.key),
        TIME: labels.column(view.label.time.removesuffix("_us")).cast(pa.int64()),
        ID: id64_column(labels.column(view.label.id)),
        **dict.fromkeys(view.columns, missing),
        KNOWN_AT: labels.column(view.label.known_at.removesuffix("_us")).cast(pa.int64()),
        VALUE: labels.column(view.label.value).cast(pa.int64()),
    }
    return pa.table({name: columns[name] for name in point_columns(view).names})


def with_what_they_label(view: FeatureView, labels: pa.Table, events: pa.Table) -> pa.Table:
    """Labels with the key and time of their event where they do not say it themselves; without such, left out."""
    assert view.label is not None
    key, time = view.entity.key, view.label.time.removesuffix("_us")
    source = view.label.labels
    silent = labels.filter(pc.is_null(labels.column(key)))
    at = pc.index_in(silent.column(view.label.id), value_set=events.column(source.id).combine_chunks())
    found = pc.is_valid(at)
    silent, at = silent.filter(found), at.filter(found)
    told = silent.set_column(silent.column_names.index(key), key, events.column(key).take(at))
    event_time = events.column(source.time.removesuffix("_us")).take(at)
    told = told.set_column(told.column_names.index(time), time, event_time)
    return pa.concat_tables([labels.filter(pc.is_valid(labels.column(key))), told.cast(labels.schema)])
