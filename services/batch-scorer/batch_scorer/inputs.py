"""What a job's functions are given: Spark, the warehouse, the cut-off, the release, and readers of its sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
from feature_store.warehouse import DAY_US, Warehouse

from batch_scorer.errors import JobError
from batch_scorer.job import BatchJob, OpenRelease

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

        Read by the executors, a day at a time, files outside the range never opened. Raises JobError for a source
        that the job does not declare.
        """
        need = next((need for need in self.job.needs if need.source == source), None)
        if need is None:
            declared = ", ".join(n.source for n in self.job.needs)
            raise JobError(f"job {self.job.name}: reads source {source!r}, which is not among its needs ({declared})")
        return read_events(self.spark, self.warehouse, source, need.columns, need.back, self.cutoff_us)


def read_events(
    spark: SparkSession,
    warehouse: Warehouse,
    source: str,
    columns: Mapping[str, pa.DataType],
    back: timedelta | None,
    cutoff_us: int,
) -> DataFrame:
    """Columns of a source's events with cutoff - back <= time < cutoff; `back` None: all before the cut-off.

    One task reads some whole days; within a day rows are sorted by time and an event counts once.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    schema = pa.schema(list(columns.items()))
    first_us = None if back is None else cutoff_us - back // timedelta(microseconds=1)
    ranges = day_ranges(warehouse, source, first_us, cutoff_us)
    uri = warehouse.uri

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for row in batch.to_pylist():
                table = Warehouse(uri).load(source, row["from_us"], row["to_us"], columns=list(columns))
                yield from table.select(list(columns)).cast(schema).to_batches(max_chunksize=1 << 16)

    spark_schema = from_arrow_schema(schema)
    if not ranges:
        return spark.createDataFrame([], spark_schema)
    tasks = spark.createDataFrame(ranges, "from_us long, to_us long").repartition(len(ranges))
    return tasks.mapInArrow(read, spark_schema)


def day_ranges(warehouse: Warehouse, source: str, from_us: int | None, to_us: int) -> list[tuple[int, int]]:
    """(from, to) of every UTC day that the source has and that meets from_us <= time < to_us, cut to it."""
    found = []
    for day_us in warehouse.days(source):
        start = day_us if from_us is None else max(day_us, from_us)
        end = min(day_us + DAY_US, to_us)
        if start < end:
            found.append((start, end))
    return found
