"""What a job's functions are given: Spark, the warehouse, the cut-off, the release, and readers of its sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from feature_store.spark import read_tasks, task_ranges
from feature_store.spark_groups import Range, batches_of, chosen
from feature_store.warehouse import Warehouse, WarehouseFile

from batch_scorer.errors import JobError
from batch_scorer.job import BatchJob, Need, OpenRelease

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Inputs:
    """One run's surroundings. Times are microseconds since the epoch, UTC; the cut-off is exclusive."""

    spark: SparkSession
    warehouse: Warehouse
    cutoff_us: int
    release: OpenRelease
    job: BatchJob

    def events(self, source: str) -> DataFrame:
        """The rows of a declared source within its `back`, before the cut-off; columns as its `Need` lists them.

        Read by the executors, some days a task, files outside the range never opened; an event counts once. Raises
        JobError for a source that the job does not declare.
        """
        need = next((need for need in self.job.needs if need.source == source), None)
        if need is None:
            declared = ", ".join(n.source for n in self.job.needs)
            raise JobError(f"job {self.job.name}: reads source {source!r}, which is not among its needs ({declared})")
        return read_events(self.spark, self.warehouse, need, self.cutoff_us)


def planned_files(warehouse: Warehouse, need: Need, cutoff_us: int) -> list[WarehouseFile]:
    """The files that a need reads, their schemas checked. Raises feature_store.source_files.DatasetError."""
    return warehouse.files(need.files, need.from_us(cutoff_us), cutoff_us, every_day=not need.gaps)


def read_events(spark: SparkSession, warehouse: Warehouse, need: Need, cutoff_us: int) -> DataFrame:
    """The need's columns of its events before the cut-off, and not before its `back`."""
    files, from_us = planned_files(warehouse, need, cutoff_us), need.from_us(cutoff_us)
    if files and warehouse.store.local and not any(file.archived for file in files):
        # Each file is a day as it is, each event in it once: what Spark reads without Python.
        return _native(spark, [warehouse.store.uri_of(file.path) for file in files], need, cutoff_us)
    ranges = task_ranges(files, from_us, cutoff_us)
    return read_tasks(spark, EventReader(warehouse.uri, need, ranges))


def _native(spark: SparkSession, paths: list[str], need: Need, cutoff_us: int) -> DataFrame:
    from pyspark.sql import functions as f
    from pyspark.sql.pandas.types import from_arrow_schema

    time, from_us = need.files.time_column, need.from_us(cutoff_us)
    schema = pa.schema(list(dict.fromkeys([*need.schema, need.files.schema.field(time)])))
    rows = spark.read.schema(from_arrow_schema(schema)).parquet(*paths)
    rows = rows.where(f.unix_micros(time) < cutoff_us)
    if from_us is not None:
        rows = rows.where(f.unix_micros(time) >= from_us)
    return rows.select(*need.schema.names)


@dataclass(frozen=True)
class EventReader:
    """Numbers of tasks → the need's columns of the events in their `ranges`."""

    uri: str
    need: Need
    ranges: tuple[Range, ...]

    @property
    def tasks(self) -> int:
        return len(self.ranges)

    @property
    def schema(self) -> pa.Schema:
        return self.need.schema

    def __call__(self, tasks: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        warehouse = Warehouse(self.uri)
        for from_us, to_us in chosen(self.ranges, tasks):
            table = warehouse.load(self.need.files, from_us, to_us, self.schema.names)
            yield from batches_of(table.cast(self.schema))
