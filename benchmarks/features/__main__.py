"""make bench-features: features of a million past transactions, in one process and on Spark; and with a hot key.

Both compute the same rows from the same files and are compared to the bit. `uniform` is what `trine data generate`
makes; in `hot` half of all transactions are one customer's at one terminal. Spark runs as local[*] on this machine, and
its clock includes reading and writing Parquet, as the other's does; its start is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feature_store.offline import compute_features as in_process
from feature_store.spark import compute_features as on_spark
from feature_store.spark_session import spark_session
from feature_store.warehouse import Warehouse
from pyspark.sql import SparkSession
from rich.console import Console
from rich.table import Table

from models.fraud.features import PLAN
from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters

ROW_COLUMNS = [PLAN.source.id, "event_time", *(entity.key for entity in PLAN.entities), *PLAN.source.fields]
DAYS = 183


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-features", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="transactions, about")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="trine-bench-") as folder:
        root = Path(folder)
        # A customer makes about 1.95 transactions a day.
        parameters = GeneratorParameters(customers=max(10, round(options.events / DAYS / 1.95)), days=DAYS)
        generate(parameters, root / "uniform")
        make_hot(root / "uniform", root / "hot")
        began = time.perf_counter()
        spark = spark_session("bench-features", root / "spark")
        spark.range(1).count()
        start_s = time.perf_counter() - began
        figures = {name: compared(console, spark, root, name, options.runs) for name in ("uniform", "hot")}
        spark.stop()
    table = Table("data", "rows", "in process, s", "Spark, s", "Spark / in process", "equal")
    for name, (rows, alone, parallel) in figures.items():
        table.add_row(name, f"{rows:,}", f"{alone:.1f}", f"{parallel:.1f}", f"{parallel / alone:.2f}", "to the bit")
    console.print(f"medians of {options.runs} runs, {os.cpu_count()} cores; Spark's start {start_s:.1f} s")
    console.print(table)
    uniform, hot = figures["uniform"], figures["hot"]
    print(
        json.dumps(
            {
                "rows": uniform[0],
                "in_process_s": round(uniform[1], 2),
                "spark_s": round(uniform[2], 2),
                "spark_vs_in_process": round(uniform[2] / uniform[1], 3),
                "hot_vs_uniform": round(hot[2] / uniform[2], 3),
                "equal": True,
            }
        )
    )


def make_hot(uniform: Path, hot: Path) -> None:
    """The same transactions, every other one the same customer's at the same terminal."""
    for file in sorted(uniform.rglob("*.parquet")):
        table = pq.read_table(file, partitioning=None)
        if file.parent.name == "transactions":
            every_other = pa.array(np.arange(table.num_rows) % 2 == 0)
            for column in ("customer_id", "terminal_id"):
                keys = pc.if_else(every_other, pa.scalar("hot"), table.column(column))
                table = table.set_column(table.column_names.index(column), column, keys)
        target = hot / file.relative_to(uniform)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target)


def compared(console: Console, spark: SparkSession, root: Path, name: str, runs: int) -> tuple[int, float, float]:
    """Rows, and seconds of both ways; raises AssertionError where a single value differs."""
    data, warehouse = root / name, Warehouse(root / name)
    alone, parallel, rows = [], [], 0
    for run in range(runs):
        began = time.perf_counter()
        pq.write_table(in_process(PLAN, data), root / "alone.parquet")
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        frame = spark.read.parquet(str(data / "transactions")).select(*ROW_COLUMNS)
        on_spark(spark, PLAN, warehouse, frame).write.mode("overwrite").parquet(str(root / "parallel"))
        parallel.append(time.perf_counter() - began)
        rows = check_equal(root)
        console.print(f"{name}, run {run + 1}: in process {alone[-1]:.1f} s, Spark {parallel[-1]:.1f} s, equal")
    return rows, statistics.median(alone), statistics.median(parallel)


def check_equal(root: Path) -> int:
    """Rows, after every column of both has been compared."""
    right, found = (pq.read_table(root / name, partitioning=None) for name in ("alone.parquet", "parallel"))
    assert found.num_rows == right.num_rows, (found.num_rows, right.num_rows)
    right, found = (t.take(pc.sort_indices(t.column(PLAN.source.id))).combine_chunks() for t in (right, found))
    for column in right.column_names:
        same = found.column(column).cast(right.schema.field(column).type).equals(right.column(column))
        assert same, f"column {column} differs"
    return int(right.num_rows)


if __name__ == "__main__":
    main()
