"""Features on Spark, point-in-time correct, for any frame of rows: the same definitions and the same kernel.

Rows are events of the past, or customers at a cut-off, or anything else with entity keys and a time. For each view the
rows and the events they can see go to the same group (`time_slices`), and one call of the kernel in a Python worker
computes the whole group from Arrow columns; nothing is done row by row. Files are read by the executors, through
`feature_store.warehouse`. Everything added up is an integer, so the result equals `feature_store.offline` to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feature_store.definitions import DefinitionError, FeaturePlan, FeatureView
from feature_store.kernel import Int64s
from feature_store.source_files import event_files, label_files
from feature_store.spark_groups import (
    KEY,
    KNOWN_AT,
    TEXT_ID,
    TIME,
    VALUE,
    EventReader,
    LabelReader,
    Range,
    RowColumns,
    TaskReader,
    ViewOfGroup,
    point_columns,
)
from feature_store.spark_session import spark_session
from feature_store.time_slices import Slicing, slicing_of
from feature_store.warehouse import Warehouse, WarehouseFile

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

__all__ = ["GROUP", "compute_features", "spark_session", "view_points"]

GROUP = "_group"
GROUP_ROWS = 500_000
"""Events that a group should hold at most: some 150 MB in a Python worker while it is computed."""

TASK_ROWS = 200_000
"""Rows of files that one task reads, about."""

_FEW_LABELS = 1_000_000
"""So many are sent whole to every executor, rather than shuffled together with all events."""


def compute_features(
    spark: SparkSession,
    plan: FeaturePlan,
    warehouse: Warehouse,
    rows: DataFrame,
    features: Sequence[str] | None = None,
    group_rows: int = GROUP_ROWS,
) -> DataFrame:
    """`rows` with the plan's features, or those of them named by `features`; rows come back in any order.

    Columns that `rows` must have: the time (the plan's event time without `_us`: a timestamp), the key of every entity
    whose features are wanted (null: no such entity, empty windows), the fields that request features read. And it may
    have the event's id: such a row is an event of the past, which sees itself and, of others at its microsecond, those
    with smaller ids. A row without id sees everything up to and including its time; for an exclusive cut-off ask one
    microsecond earlier. Labels count as known at the row's time. A column of `rows` that has a feature's name is
    replaced by the feature. Counts, flags, sums and fields are long, ratios double.

    `rows` is evaluated twice, once to learn its range of times: persist it where it is dear. Raises DefinitionError
    for missing columns and unknown features, DatasetError for files whose schema is wrong; wrong values in files, which
    executors find, fail the job.
    """
    from pyspark.sql import functions as F

    wanted = tuple(plan.features if features is None else features)
    if unknown := [name for name in wanted if name not in plan.features]:
        raise DefinitionError(f"plan {plan.model}: no feature {', '.join(unknown)}")
    views = [view for view in plan.views if set(view.features) & set(wanted)]
    own = RowColumns(plan, wanted, plan.source.id in rows.columns)
    time = plan.source.time.removesuffix("_us")
    _check_columns(plan, own, views, rows)
    first, last = rows.agg(F.unix_micros(F.min(time)), F.unix_micros(F.max(time))).collect()[0]
    kept = [name for name in rows.columns if name not in wanted]
    carried = rows.drop(*own.schema.names).schema.fields
    out = rows.mapInArrow(own, struct_of(carried, own.schema))
    for view in views:
        # No rows at all: any time does.
        points, slicing = view_points(spark, plan, warehouse, view, first or 0, last or 0, group_rows)
        place = F.floor((F.col(TIME) - slicing.first_us) / slicing.slice_us)
        grouped = out.withColumn(GROUP, _group(slicing, place, F.col(view.entity.key))).groupBy(GROUP)
        work = ViewOfGroup.of(plan, view, wanted, GROUP)
        schema = struct_of(out.schema.fields, work.schema)
        out = grouped.cogroup(points.groupBy(GROUP)).applyInArrow(_of_two(work), schema)
    return out.select(*kept, *wanted)


def view_points(
    spark: SparkSession,
    plan: FeaturePlan,
    warehouse: Warehouse,
    view: FeatureView,
    first_us: int,
    last_us: int,
    group_rows: int = GROUP_ROWS,
) -> tuple[DataFrame, Slicing]:
    """The view's events, and labels on them, that rows at times first_us to last_us can see, with GROUP, the group (or
    both groups) that each belongs to; other columns as `spark_groups.point_columns` says."""
    from pyspark.sql import functions as F

    begin_us, end_us = first_us - view.delay_us - max(view.windows_us) + 1, last_us - view.delay_us + 1
    points, days, counts = points_between(spark, plan, warehouse, view, begin_us, end_us, last_us + 1)
    slicing = slicing_of(view, first_us, last_us, days, counts, group_rows, spark.sparkContext.defaultParallelism)
    if slicing.slices == 1:
        place = F.lit(0)
    else:
        # Every slice that has a row at a time in [t + delay, t + delay + W).
        since = F.col(TIME) + (view.delay_us - slicing.first_us)
        begin = F.greatest(F.floor(since / slicing.slice_us), F.lit(0))
        end = F.least(F.floor((since + (max(view.windows_us) - 1)) / slicing.slice_us), F.lit(slicing.slices - 1))
        place = F.explode(F.sequence(begin, end))
    points = points.withColumn("_slice", place)
    return points.withColumn(GROUP, _group(slicing, F.col("_slice"), F.col(KEY))).drop("_slice"), slicing


def points_between(
    spark: SparkSession,
    plan: FeaturePlan,
    warehouse: Warehouse,
    view: FeatureView,
    begin_us: int,
    end_us: int,
    known_before_us: int,
) -> tuple[DataFrame, Int64s, Int64s]:
    """The view's events from begin_us to before end_us and the labels on them known before a time; and the days that
    have events, with how many. Columns as `spark_groups.point_columns` says."""
    files = warehouse.files(event_files(plan), begin_us, end_us)
    days, counts = _rows_by_day(files)
    events = read_tasks(spark, EventReader(warehouse.uri, plan, view, task_ranges(files, begin_us, end_us)))
    if view.label is None:
        return events, days, counts
    told = warehouse.files(label_files(view.label), None, known_before_us)
    labels = read_tasks(spark, LabelReader(warehouse.uri, view, task_ranges(told, None, known_before_us)))
    return with_labels(view, events, labels, sum(file.rows for file in told)), days, counts


def with_labels(view: FeatureView, events: DataFrame, labels: DataFrame, count: int) -> DataFrame:
    """Points of events (with TEXT_ID) and of the labels on them (TEXT_ID, KNOWN_AT, VALUE; `count` of these)."""
    from pyspark.sql import functions as F

    on_events = events.drop(KNOWN_AT, VALUE).join(F.broadcast(labels) if count <= _FEW_LABELS else labels, TEXT_ID)
    columns = point_columns(view).names
    return events.select(*columns).unionByName(on_events.select(*columns))


def _rows_by_day(files: Sequence[WarehouseFile]) -> tuple[Int64s, Int64s]:
    """Days (first microsecond) that have files, and how many rows those hold."""
    found: dict[int, int] = {}
    for file in files:
        found[file.day_us] = found.get(file.day_us, 0) + file.rows
    return np.array(list(found), dtype=np.int64), np.array(list(found.values()), dtype=np.int64)


def read_tasks(spark: SparkSession, reader: TaskReader) -> DataFrame:
    """What a reader reads, each of its tasks one of Spark's."""
    return spark.range(0, reader.tasks, 1, max(1, reader.tasks)).mapInArrow(reader, struct_of([], reader.schema))


def task_ranges(files: Sequence[WarehouseFile], begin_us: int | None, end_us: int) -> tuple[Range, ...]:
    """What each task reads, from a time to before a time: days together of about `TASK_ROWS` rows."""
    days, rows = _rows_by_day(files)
    if len(days) == 0:
        return ()
    share = np.cumsum(rows) // TASK_ROWS
    first = np.flatnonzero(np.concatenate(([True], share[1:] != share[:-1])))
    low = days[first] if begin_us is None else np.maximum(days[first], begin_us)
    high = np.concatenate((low[1:], [end_us]))
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def _of_two(work: ViewOfGroup) -> Callable[[pa.Table, pa.Table], pa.Table]:
    """Spark counts a function's parameters, and would count `self`."""
    return lambda rows, points: work(rows, points)


def _group(slicing: Slicing, place: Column, key: Column) -> Column:
    from pyspark.sql import functions as F

    return (place * slicing.buckets + F.pmod(F.xxhash64(key), F.lit(slicing.buckets))).cast("int")


def struct_of(fields: Sequence[object], added: pa.Schema) -> StructType:
    """Spark's fields, and an Arrow schema's after them."""
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StructType

    return StructType([*fields, *from_arrow_schema(added).fields])  # type: ignore[list-item]


def _check_columns(plan: FeaturePlan, own: RowColumns, views: Sequence[FeatureView], rows: DataFrame) -> None:

    right = {plan.source.time.removesuffix("_us"): "timestamp"}
    right |= {view.entity.key: "string" for view in views}
    right |= dict.fromkeys(own.fields, "bigint")
    if own.has_id:
        right[plan.source.id] = "string"
    found = {field.name: field.dataType.simpleString() for field in rows.schema.fields}
    for name, type_ in right.items():
        if name not in found:
            raise DefinitionError(
                f"rows: column {name} ({type_}) is missing; the columns are {', '.join(found) or 'none'}"
            )
        if found[name] != type_:
            raise DefinitionError(f"rows: column {name} is {found[name]}, must be {type_}")
