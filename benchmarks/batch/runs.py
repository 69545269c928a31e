"""Runs of the benchmark's jobs as processes, with their memory watched."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from trine_cli.local.redis_server import RedisServer

_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """seconds: by stage. Memory in MB, peaks of resident sets: the driver with its JVM, the largest Python worker.
    cpu_s: of driver, JVM and workers together, the start of Spark with them."""

    rows: int
    seconds: dict[str, float]
    windows: dict[str, list[float]]
    redis_bytes: int
    paused_s: float
    driver_mb: float
    worker_mb: float
    cpu_s: float

    @property
    def work_s(self) -> float:
        """From the files to the pointer, without the start of Spark."""
        return sum(self.seconds.values()) - self.seconds["spark"]

    @property
    def publish_s(self) -> float:
        """From the run's own Parquet to the pointer."""
        return sum(self.seconds[stage] for stage in ("write", "count", "publish"))


def measured_run(
    job: str, warehouse: Path, redis: RedisServer, releases: Path, release: str, **settings: object
) -> MeasuredRun:
    """Runs the job once on all cores. Raises RuntimeError with the end of its output where it fails."""
    with tempfile.TemporaryDirectory(prefix="trine-bench-") as scratch:
        asked = {
            "job": job, "redis_url": redis.url, "warehouse": str(warehouse), "releases": str(releases),
            "release": release, "scratch": scratch, **settings,
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.batch.driver", json.dumps(asked)]
        with (Path(scratch) / "out").open("w+") as out, (Path(scratch) / "log").open("w+") as log:
            driver = psutil.Popen(command, stdout=out, stderr=log)
            driver_mb = worker_mb = 0.0
            cpu: dict[int, float] = {}
            while True:
                try:
                    driver.wait(_POLL_S)
                    break
                except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
                    one, largest = _usage(driver, cpu)
                    driver_mb, worker_mb = max(driver_mb, one), max(worker_mb, largest)
            out.seek(0)
            log.seek(0)
            if driver.returncode != 0:
                raise RuntimeError(f"run of {job} ended with {driver.returncode}: {log.read()[-2_000:]}")
            found = json.loads(out.read())
    m = found["manifest"]
    return MeasuredRun(
        m["rows"], m["seconds"], found["windows"], m["redis_bytes"], m["paused_s"], driver_mb, worker_mb,
        sum(cpu.values()),
    )  # fmt: skip


def _usage(driver: psutil.Process, cpu: dict[int, float]) -> tuple[float, float]:
    """MB of the driver with its JVM, and of the largest Python worker; `cpu` gets each process's seconds so far."""
    own = largest = 0.0
    try:
        for process in [driver, *driver.children(recursive=True)]:
            size, times = process.memory_info().rss / 1e6, process.cpu_times()
            cpu[process.pid] = times.user + times.system
            # The JVM's own command line names the daemon's module, too.
            if process.name() != "java" and "python_daemon" in " ".join(process.cmdline()):
                largest = max(largest, size)
            else:
                own += size
    except psutil.NoSuchProcess:
        pass
    return own, largest
