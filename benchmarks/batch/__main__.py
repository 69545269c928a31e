"""make bench-batch: rows a second from Parquet to published, beside Feast, redis-benchmark and one row at a time.

All sides share this machine and this Redis (append-only file on). The start of Spark and of Feast's process is not
counted; reading, arranging, checking, writing, counting and the pointer are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from model_release.testing import write_toy_release
from rich.console import Console
from rich.table import Table
from trine_cli.local.redis_server import RedisServer

from benchmarks.batch.entities import write_entities
from benchmarks.batch.jobs import PLAN
from benchmarks.batch.peers import feast_python, feast_rate, floor_rate, row_by_row_rate
from benchmarks.batch.runs import MeasuredRun, measured_run

WORK = Path(".run/bench-batch")
NO_RELEASE = "bench-000000000000"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-batch", description=__doc__)
    parser.add_argument("--entities", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--feast-entities", type=int, default=500_000, help="its rate does not depend on the number")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--read-p99-ms", type=float, default=2.0, help="limit of the run that yields")
    options = parser.parse_args()
    console = Console()
    if shutil.which("redis-benchmark") is None:
        need = "redis-benchmark is not on PATH (Debian: apt-get install redis-tools)"
        Console(stderr=True).print(f"{need}; publish_vs_redis_floor is left out")
    WORK.mkdir(parents=True, exist_ok=True)
    sizes = sorted(options.entities)
    with tempfile.TemporaryDirectory(prefix="trine-bench-") as folder, RedisServer(Path(folder) / "redis") as redis:
        release = write_toy_release(Path(folder) / "releases", PLAN)
        runs: dict[int, list[MeasuredRun]] = {size: [] for size in sizes}
        feast, floor = [], []
        for _ in range(options.runs):
            for size in sizes:
                # Nobody reads meanwhile: what yielding costs is measured below.
                runs[size].append(_publish(size, redis, Path(folder), read_p99_ms=0.0))
                console.print(f"{size:,} entities: {runs[size][-1].work_s:.1f} s")
            row_bytes = runs[sizes[-1]][-1].redis_bytes // sizes[-1]
            floor.append(floor_rate(sizes[-1], redis, row_bytes))
            warehouse = write_entities(WORK, options.feast_entities)
            feast.append(feast_rate(warehouse, options.feast_entities, redis, feast_python(WORK)))
        with redis.connect() as client:
            client.flushall()
        scored = measured_run("score", write_entities(WORK, sizes[-1]), redis, release.path.parent, release.id)
        one = row_by_row_rate(release)
        reads = {
            "no run at work": _reads(redis, sizes[-1], Path(folder), None),
            "written without yielding": _reads(redis, sizes[-1], Path(folder), 0.0),
            f"yielding above {options.read_p99_ms:g} ms": _reads(redis, sizes[-1], Path(folder), options.read_p99_ms),
        }
    _show(console, runs, scored, one, reads, _median(feast), _median([rate for rate in floor if rate]) or None)


def _publish(size: int, redis: RedisServer, folder: Path, **settings: object) -> MeasuredRun:
    with redis.connect() as client:
        client.flushall()
    return measured_run("publish", write_entities(WORK, size), redis, folder, NO_RELEASE, **settings)


def _reads(redis: RedisServer, size: int, folder: Path, limit_ms: float | None) -> dict[str, float]:
    """Milliseconds of online reads while a run's rows are written, or in quiet; and the seconds of writing."""
    run = _publish(min(size, 100_000), redis, folder)
    command = [sys.executable, "-m", "benchmarks.batch.online_reads", redis.url, "bench-publish"]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if limit_ms is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(10)
        first, last = 0.0, float("inf")
    else:
        run = measured_run(
            "publish", write_entities(WORK, size), redis, folder, NO_RELEASE, read_p99_ms=limit_ms, force="benchmark"
        )
        first, last = run.windows["write"]
    seen = json.loads(reader.communicate("end\n")[0])
    took = sorted(ms for at, ms in seen if first <= at <= last)
    return {
        "p50_ms": took[len(took) // 2], "p99_ms": took[int(len(took) * 0.99)], "reads": len(took),
        "write_s": 0.0 if limit_ms is None else run.seconds["write"], "paused_s": run.paused_s,
    }  # fmt: skip


def _show(
    console: Console, runs: dict[int, list[MeasuredRun]], scored: MeasuredRun, one: float,
    reads: dict[str, dict[str, float]], feast: float, floor: float | None,
) -> None:  # fmt: skip
    largest = max(runs)
    whole = {size: size / statistics.median(run.work_s for run in found) for size, found in runs.items()}
    publish = {size: size / statistics.median(run.publish_s for run in found) for size, found in runs.items()}
    table = Table(title=f"From Parquet to published, {psutil.cpu_count()} cores, medians", show_edge=False)
    stages = ("population", "score", "write", "count")
    columns = (
        "entities",
        "rows/s",
        "written/s",
        *(f"{stage} s" for stage in stages),
        "driver, JVM MB",
        "worker MB",
        "B/row",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for size, found in runs.items():
        table.add_row(
            f"{size:,}",
            f"{whole[size]:,.0f}",
            f"{publish[size]:,.0f}",
            *(f"{statistics.median(run.seconds[stage] for run in found):.1f}" for stage in stages),
            f"{max(run.driver_mb for run in found):,.0f}",
            f"{max(run.worker_mb for run in found):,.0f}",
            f"{found[0].redis_bytes / size:.1f}",
        )
    console.print(table)
    score = scored.rows / scored.seconds["score"]
    rates = Table(title="Rows a second", show_edge=False)
    rates.add_column("side")
    rates.add_column("rows/s", justify="right")
    rates.add_row("Feast materialize", f"{feast:,.0f}")
    rates.add_row("redis-benchmark, SET a row, pipelined", f"{floor:,.0f}" if floor else "not installed")
    rates.add_row("stage score, with the module", f"{score:,.0f}")
    rates.add_row("the module, one row at a time", f"{one:,.0f}")
    console.print(rates)
    latencies = Table(title="Online reads of one key", show_edge=False)
    for column in ("while", "p50 ms", "p99 ms", "reads", "write s", "paused s"):
        latencies.add_column(column, justify="left" if column == "while" else "right")
    for name, of in reads.items():
        latencies.add_row(name, *(f"{of[key]:,.2f}" for key in ("p50_ms", "p99_ms", "reads", "write_s", "paused_s")))
    console.print(latencies)
    result = {
        "publish_vs_feast_materialize": round(whole[largest] / feast, 2),
        "publish_vs_redis_floor": round(whole[largest] / floor, 3) if floor else None,
        "write_vs_redis_floor": round(publish[largest] / floor, 3) if floor else None,
        "score_vs_row_by_row": round(score / one, 1),
        "rows_per_s": {str(size): round(rate) for size, rate in whole.items()},
        "written_rows_per_s": {str(size): round(rate) for size, rate in publish.items()},
        "feast_rows_per_s": round(feast),
        "redis_set_per_s": round(floor) if floor else None,
        "cpu_us_per_row": {
            str(size): round(statistics.median(run.cpu_s for run in found) / size * 1e6, 2)
            for size, found in runs.items()
        },
        "driver_and_jvm_mb": {str(size): round(max(run.driver_mb for run in found)) for size, found in runs.items()},
        "worker_mb": {str(size): round(max(run.worker_mb for run in found)) for size, found in runs.items()},
        "reads": reads,
    }
    print(json.dumps(result))


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


if __name__ == "__main__":
    main()
