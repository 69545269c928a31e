"""Features on Spark equal those computed in one process, to the bit; rows need not be events; no group is too large."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from feature_store.definitions import DefinitionError, FeaturePlan, days
from feature_store.offline import compute_features as compute_in_process
from feature_store.source_files import DAY_US
from feature_store.spark import GROUP, compute_features, view_points
from feature_store.warehouse import Warehouse
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from tests.feature_oracle import Event, Report, view_row
from tests.test_offline import DAYS, FIRST_DAY, Tables, random_tables, times_of, written

from models.fraud.features import PLAN

SHORT = FeaturePlan(
    "fraud", PLAN.source, PLAN.request_features, tuple(replace(v, windows=days(1, 2)) for v in PLAN.views)
)
"""Windows so short that the sixty days of the data make many slices."""

ROW_COLUMNS = ["transaction_id", "event_time", "customer_id", "terminal_id", "amount"]


def by_id(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table.column("transaction_id"))).combine_chunks()


@pytest.mark.parametrize(("plan", "group_rows"), [(PLAN, 500_000), (SHORT, 150)])
def test_past_events_get_the_same_to_the_bit(
    spark: SparkSession, tmp_path: Path, plan: FeaturePlan, group_rows: int
) -> None:
    path = written(tmp_path / "data", random_tables(5, 3_000))
    right = compute_in_process(plan, path)
    rows = spark.createDataFrame(right.select(ROW_COLUMNS))
    found = compute_features(spark, plan, Warehouse(path), rows, group_rows=group_rows).toArrow()
    assert found.column_names == right.column_names
    assert by_id(found).equals(by_id(right))


def test_a_hot_key_makes_no_large_group(spark: SparkSession, tmp_path: Path) -> None:
    """Half of all events are one customer's, at one terminal."""
    n, group_rows = 6_000, 1_000
    transactions, reports = random_tables(6, n)
    hot = np.arange(n) % 2 == 0
    for column in ("customer_id", "terminal_id"):
        keys = np.where(hot, "hot", np.asarray(transactions.column(column).to_pylist(), dtype=object))
        place = transactions.column_names.index(column)
        transactions = transactions.set_column(place, column, pa.array(keys, pa.string()))
    path = written(tmp_path / "data", (transactions, reports))
    right = compute_in_process(SHORT, path)
    times = times_of(transactions, "event_time")
    warehouse = Warehouse(path)
    for view in SHORT.views:
        points, slicing = view_points(
            spark, SHORT, warehouse, view, int(times.min()), int(times.max()), group_rows=group_rows
        )
        sizes = points.where(F.col("_value").isNull()).groupBy(GROUP).count().toArrow().column("count")
        assert slicing.most <= group_rows
        assert pc.max(sizes).as_py() <= slicing.most < n / 2
        # Every event is in one slice or two.
        assert n - 500 < pc.sum(sizes).as_py() < 2 * n
    rows = spark.createDataFrame(right.select(ROW_COLUMNS))
    found = compute_features(spark, SHORT, warehouse, rows, group_rows=group_rows).toArrow()
    assert by_id(found).equals(by_id(right))


def oracle(tables: Tables) -> tuple[list[Event], list[Report]]:
    """The tables' rows as the brute force wants them."""
    times = times_of(tables[0], "event_time").tolist()
    events = [
        Event(
            r["transaction_id"],
            at,
            {"customer": r["customer_id"], "terminal": r["terminal_id"]},
            {"amount": r["amount"]},
        )
        for at, r in zip(times, tables[0].to_pylist(), strict=True)
    ]
    known = times_of(tables[1], "reported_at").tolist()
    reports = [Report(r["transaction_id"], at, r["fraud"]) for at, r in zip(known, tables[1].to_pylist(), strict=True)]
    return events, reports


def test_rows_that_are_no_events(spark: SparkSession, tmp_path: Path) -> None:
    """Customers and terminals at some times, as brute force says; unknown ones and none have empty windows."""
    tables = random_tables(8, 900)
    path = written(tmp_path / "data", tables)
    events, reports = oracle(tables)
    customers = [*(f"C{i}" for i in range(25)), "nobody", None]
    terminals = [*(f"T{i}" for i in range(12)), None, "nowhere"]
    # A time at which something happened, one between, the beginning, and one long after the end.
    at = [events[400].time_us, events[500].time_us + 1, FIRST_DAY, FIRST_DAY + (DAYS + 90) * DAY_US]
    given = [(c, terminals[i % len(terminals)], t) for i, c in enumerate(customers) for t in at]
    rows = spark.createDataFrame(
        pa.table(
            {
                "customer_id": pa.array([c for c, _, _ in given], pa.string()),
                "terminal_id": pa.array([t for _, t, _ in given], pa.string()),
                "event_time": pa.array([t for _, _, t in given], pa.timestamp("us", tz="UTC")),
                "why": pa.array([str(i) for i in range(len(given))]),
            }
        )
    )
    wanted = [*PLAN.views[1].features, "customer_mean_amount_7d", "is_weekend"]
    found = compute_features(spark, PLAN, Warehouse(path), rows, wanted, group_rows=200).toArrow()
    assert found.column_names == ["customer_id", "terminal_id", "event_time", "why", *wanted]
    assert sorted(int(i) for i in found.column("why").to_pylist()) == list(range(len(given)))
    for row in found.to_pylist():
        customer, terminal, time_us = given[int(row["why"])]
        right = dict.fromkeys(wanted, 0.0)
        for view, key in zip(PLAN.views, (customer, terminal), strict=True):
            if key is not None:
                right |= dict(zip(view.features, view_row(view, events, reports, key, time_us), strict=True))
        for name in wanted[:-1]:
            assert row[name] == right[name], (name, given[int(row["why"])])
        assert row["is_weekend"] == (row["event_time"].weekday() >= 5)
    assert any(found.column("terminal_fraud_share_30d").to_pylist())


def test_no_rows_and_wrong_rows(spark: SparkSession, tmp_path: Path) -> None:
    path = written(tmp_path / "data", random_tables(9, 100))
    warehouse = Warehouse(path)
    rows = spark.createDataFrame(compute_in_process(PLAN, path).select(ROW_COLUMNS))
    nothing = compute_features(spark, PLAN, warehouse, rows.where("false")).toArrow()
    assert (nothing.num_rows, nothing.column_names[-1]) == (0, PLAN.features[-1])
    with pytest.raises(DefinitionError, match="no feature customer_count_2d"):
        compute_features(spark, PLAN, warehouse, rows, ["customer_count_2d"])
    with pytest.raises(DefinitionError, match=r"column terminal_id \(string\) is missing"):
        compute_features(spark, PLAN, warehouse, rows.drop("terminal_id"))
    with pytest.raises(DefinitionError, match="column amount is string, must be bigint"):
        compute_features(spark, PLAN, warehouse, rows.withColumn("amount", F.lit("5")))
    assert "amount" not in compute_features(spark, PLAN, warehouse, rows.drop("amount"), ["is_night"]).columns
