"""A stream worker under measurement: started on a plan, watched by its metrics and by what it costs."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil
from feature_store.definitions import FeaturePlan
from trine_cli.local.ports import free_port
from trine_cli.local.process import ChildProcess

TIMEOUT_S = 300.0


class WorkerProcess:
    """`stream_worker.main` in a process of its own; `settings` are those of the worker, without their prefix."""

    def __init__(self, folder: Path, name: str, plan: FeaturePlan, settings: Mapping[str, object]) -> None:
        plan_file = folder / f"{name}.plan.json"
        plan_file.write_text(json.dumps(plan.to_json()))
        self._port = free_port()
        values = {
            "PLAN_FILE": plan_file,
            "WORKER_ID": name,
            "GROUP_PREFIX": name,
            "HOST": "127.0.0.1",
            "METRICS_PORT": self._port,
            **settings,
        }
        self._child = ChildProcess(
            name,
            [sys.executable, "-m", "stream_worker.main"],
            log=folder / f"{name}.log",
            env={f"TRINE_WORKER_{key}": str(value) for key, value in values.items()},
        )
        self.process = psutil.Process(self._child.pid)

    def stop(self) -> None:
        self._child.stop()

    def wait(self, outcome: str, rows: int) -> tuple[float, float]:
        """(moment, rows) at which `rows` rows have had that outcome. Raises RuntimeError where they never do."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            found, moment = self._events(outcome), time.perf_counter()
            if found >= rows:
                return moment, found
            if not self._child.alive or time.monotonic() > deadline:
                log = self._child.log.read_text()[-2000:]
                raise RuntimeError(f"{found:,.0f} of {rows:,} rows are {outcome}; see {log}")
            time.sleep(0.05)

    def _events(self, outcome: str) -> float:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as reply:
                lines = reply.read().decode().splitlines()
        except OSError:
            return 0.0
        mark = "trine_worker_events_total{"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(mark) and f'"{outcome}"' in line)


def cpu_s(process: psutil.Process) -> float:
    """Seconds of CPU that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)
