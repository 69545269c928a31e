"""States for a rebuild on Spark: executors read the history, each group's states go from there to Redis.

Bytes are the same that one process would write. A task that is done again writes them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import redis

from feature_store.archived_log import CLOCK, LOG, ArchivedSource, event_points, label_points
from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.log_positions import ArchivedLogs
from feature_store.rebuild import Advance, States
from feature_store.spark import GROUP_ROWS, TASK_ROWS, points_between, read_tasks, struct_of, with_labels
from feature_store.spark_groups import KEY, KNOWN_AT, TEXT_ID, VALUE, batches_of, chosen, point_columns, points_of
from feature_store.state_build import Written, write_states
from feature_store.warehouse import Warehouse, WarehouseFile
from feature_store.warehouse_rows import PARTITION

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_GROUP = "_group"


@dataclass(frozen=True)
class OnSpark:
    """`redis_url`: where executors write, as they reach it."""

    spark: SparkSession
    redis_url: str
    warehouse: Warehouse

    def until(self, plan: FeaturePlan, shards: int, version: str, until_us: int, advance: Advance) -> States:
        begin_us = until_us - max(view.retention_us for view in plan.views)
        written = {}
        for view in plan.views:
            points, _, counts = points_between(
                self.spark, plan, self.warehouse, view, begin_us, until_us, known_before_us=until_us
            )
            written[view.name] = self._write(view, points, int(counts.sum()), shards, version, advance)
        return States(written, {})

    def archive(self, plan: FeaturePlan, shards: int, version: str, logs: ArchivedLogs, advance: Advance) -> States:
        from pyspark.sql import functions as F

        source = ArchivedSource(plan, None, logs.ends[plan.source.topic])
        admitted, own, rows = self._rows(source)
        admitted.persist()
        try:
            newest = admitted.where(F.col(LOG) == source.end.log).groupBy(PARTITION).agg(F.max(CLOCK).alias(CLOCK))
            clocks = {row[PARTITION]: row[CLOCK] for row in newest.collect()}
            events = admitted.drop(CLOCK).unionByName(own)
            written = {}
            for view in plan.views:
                points = self._archived_points(plan, view, events, logs)
                written[view.name] = self._write(view, points, rows, shards, version, advance)
        finally:
            admitted.unpersist()
        return States(written, clocks)

    def _rows(self, source: ArchivedSource) -> tuple[DataFrame, DataFrame, int]:
        """Rows of logs that the worker took, with CLOCK; rows of days' own files; how many both are at most."""
        files = self.warehouse.files(source.files)
        archived = _ArchiveReader(self.warehouse.uri, source, _together([f for f in files if f.archived]))
        own = _ArchiveReader(self.warehouse.uri, source, _together([f for f in files if not f.archived]))
        frame = read_tasks(self.spark, archived)
        schema = struct_of(frame.schema.fields, pa.schema({CLOCK: pa.int64()}))
        admitted = frame.groupBy(LOG, PARTITION).applyInArrow(lambda rows: source.admitted(rows), schema)
        return admitted, read_tasks(self.spark, own), sum(f.rows for f in files)

    def _archived_points(
        self, plan: FeaturePlan, view: FeatureView, events: DataFrame, logs: ArchivedLogs
    ) -> DataFrame:
        from pyspark.sql import functions as F

        columns = point_columns(view)
        with_text = pa.schema([*columns, pa.field(TEXT_ID, pa.string())])

        def of_events(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                table = pa.Table.from_batches([batch])
                points = event_points(plan, view, table)
                yield from batches_of(points.append_column(TEXT_ID, table.column(plan.source.id)))

        def of_labels(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                yield from batches_of(label_points(view, pa.Table.from_batches([batch])))

        points = events.mapInArrow(of_events, struct_of([], with_text))
        if view.label is None:
            return points.drop(TEXT_ID)
        source = ArchivedSource(plan, view.label, logs.ends[view.label.topic])
        admitted, own, rows = self._rows(source)
        told = admitted.drop(CLOCK).mapInArrow(of_labels, struct_of([], columns))
        known_at = F.unix_micros(F.col(source.files.time_column))
        silent = own.select(
            F.col(view.label.id).alias(TEXT_ID),
            known_at.alias(KNOWN_AT),
            F.col(view.label.value).cast("long").alias(VALUE),
        )
        return with_labels(view, points, silent, rows).unionByName(told)

    def _write(
        self, view: FeatureView, points: DataFrame, rows: int, shards: int, version: str, advance: Advance
    ) -> Written:
        from pyspark.sql import functions as F

        buckets = max(2 * self.spark.sparkContext.defaultParallelism, rows * 4 // GROUP_ROWS)
        work = _StatesOfGroup(self.redis_url, view, shards, version)
        grouped = points.withColumn(_GROUP, F.pmod(F.xxhash64(KEY), F.lit(buckets)).cast("int")).groupBy(_GROUP)
        done = grouped.applyInArrow(lambda given: work(given), struct_of([], work.schema)).toLocalIterator()
        written = Written(0, 0, 0)
        for row in done:
            written += Written(row["entities"], row["state_bytes"], row["events"])
            advance(row["entities"])
        return written


@dataclass(frozen=True)
class _ArchiveReader:
    """Numbers of tasks → the rows of their files."""

    uri: str
    source: ArchivedSource
    files: tuple[tuple[WarehouseFile, ...], ...]

    @property
    def schema(self) -> pa.Schema:
        return self.source.schema

    @property
    def tasks(self) -> int:
        return len(self.files)

    def __call__(self, tasks: Iterable[pa.RecordBatch], /) -> Iterator[pa.RecordBatch]:
        warehouse = Warehouse(self.uri)
        for files in chosen(self.files, tasks):
            for file in files:
                yield from batches_of(self.source.rows(warehouse, file))


def _together(files: Sequence[WarehouseFile]) -> tuple[tuple[WarehouseFile, ...], ...]:
    """What each task reads: files of about TASK_ROWS rows together."""
    out: list[list[WarehouseFile]] = []
    rows = TASK_ROWS
    for file in files:
        if rows + file.rows > TASK_ROWS:
            out.append([])
            rows = 0
        out[-1].append(file)
        rows += file.rows
    return tuple(map(tuple, out))


@dataclass(frozen=True)
class _StatesOfGroup:
    """Points of some entities → their states in Redis, and what was written."""

    redis_url: str
    view: FeatureView
    shards: int
    version: str

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"entities": pa.int64(), "state_bytes": pa.int64(), "events": pa.int64()})

    def __call__(self, given: pa.Table) -> pa.Table:
        keys, points = points_of(self.view, given)
        with redis.Redis.from_url(self.redis_url) as client:
            made = write_states(client, self.view, keys.to_pylist(), points, self.shards, self.version)
        row = {"entities": [made.entities], "state_bytes": [made.state_bytes], "events": [made.events]}
        return pa.table(row, self.schema)
