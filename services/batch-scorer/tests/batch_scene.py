"""What the runner's tests are made of: a small warehouse, a toy release, and drivers as processes that can be killed.

Run as a program it is such a driver: it runs the example job and does to itself what its last argument says when a
stage begins or moves.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from batch_scorer.predictions import Predicted, Predictions
from batch_scorer.registry import Registry
from batch_scorer.settings import BatchSettings
from feature_store.source_files import DAY_US, day_name
from model_release import Release
from model_release.testing import write_toy_release
from tests.shop_job import PLAN

from models.fraud.sources import TRANSACTION_FILES

FIRST_DAY_US = 1_532_476_800_000_000  # 2018-07-25
DAYS = 34
CUSTOMERS = 700
#: Two nights in a row.
MONDAY_US = FIRST_DAY_US + 31 * DAY_US
TUESDAY_US = FIRST_DAY_US + 32 * DAY_US
HERE = Path(__file__).parent


def write_warehouse(folder: Path, customers: int = CUSTOMERS, days: int = DAYS, seed: int = 5) -> Path:
    """Transactions of some weeks: each customer about one a day, of amounts of their own."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(8, 1, customers)
    (folder / "transactions").mkdir(parents=True)
    for day in range(days):
        start = FIRST_DAY_US + day * DAY_US
        customer = np.arange(customers)
        times = np.sort(rng.integers(0, DAY_US, customers)) + start
        columns = {
            "transaction_id": [str(day * customers + i) for i in range(customers)],
            "event_time": pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "customer_id": [str(i) for i in customer],
            "terminal_id": ["t"] * customers,
            "amount": (mean * rng.lognormal(0, 0.3, customers)).astype(np.int64) + 1,
            "currency": ["EUR"] * customers,
        }
        pq.write_table(
            pa.table(columns, schema=TRANSACTION_FILES.schema), folder / "transactions" / f"{day_name(start)}.parquet"
        )
    return folder


def write_release(folder: Path, seed: int = 3) -> Release:
    return write_toy_release(folder, PLAN, seed=seed)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One test's surroundings."""

    url: str
    warehouse: Path
    releases: Path
    scratch: Path

    def settings(self, **changes: object) -> BatchSettings:
        """Quick to give up, since tests do not wait."""
        own = {
            "redis_url": self.url, "warehouse": str(self.warehouse), "releases": self.releases,
            "scratch": self.scratch, "master": "local[2]", "lease_s": 2.0, "wait_s": 20.0, "driver_memory": "512m",
            "redis_patience_s": 20.0, "block_rows": 16,
        }  # fmt: skip
        return BatchSettings.model_validate(own | changes)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def registry(self) -> Registry:
        return Registry(self.client())

    def read(self, *keys: str) -> Predicted:
        with self.client() as client:
            return Predictions(client).read("shop", list(keys))

    def everything(self) -> dict[str, object]:
        """Key -> outputs of the published run."""
        keys = [str(i) for i in range(CUSTOMERS)]
        return dict(zip(keys, self.read(*keys).values, strict=True))

    def blocks(self) -> dict[str, int]:
        """Run -> how many keys in Redis are its own."""
        with self.client() as client:
            found = [key.decode().split(":") for key in client.scan_iter("trine:batch:shop-*", count=10_000)]
        return {run: sum(parts[2] == run for parts in found) for run in {parts[2] for parts in found}}

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.warehouse / "runs" / "shop").glob("*"))

    @property
    def mark(self) -> Path:
        """Where a job that waits says that it does."""
        return self.scratch.parent / "scoring"

    @property
    def log(self) -> Path:
        """What the drivers said."""
        return self.scratch.parent / "drivers.log"

    def driver(
        self, cutoff_us: int, do: str = "", *, waits: bool = False, file_bytes: int | None = None, **changes: object
    ) -> subprocess.Popen[bytes]:
        """A driver as a process of its own. `do`: what it does to itself, `<signal>:<stage>[:moved]`.

        `waits`: one of its workers makes `mark` and waits to be killed. `file_bytes`: no file that its Python workers
        write grows beyond, as on a disk that is full.
        """
        settings = self.settings(**changes).model_dump(mode="json")
        path = os.pathsep.join([str(HERE.parent), *(p for p in sys.path if p)])
        command = [sys.executable, "-m", "tests.batch_scene", json.dumps(settings), str(cutoff_us), do]
        if waits:
            command.append(str(self.mark))
        with self.log.open("ab") as log:
            # A JVM that lives for seconds only.
            env = {"PYTHONPATH": path, "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
            if file_bytes is not None:
                python = self.scratch.parent / "limited-python"
                python.write_text(f'#!/bin/sh\nexec prlimit --fsize={file_bytes} {sys.executable} "$@"\n')
                python.chmod(0o755)
                env["PYSPARK_PYTHON"] = str(python)
            return subprocess.Popen(command, env=os.environ | env, stdout=log, stderr=log)


def spent(warehouse: Path, cutoff_us: int) -> pa.Table:
    """What each customer spent in the 30 days before, by SQL over the files: `key`, `largest`, `count`, `mean`."""
    found = duckdb.sql(f"""
        select customer_id as key, max(amount)::float largest, count(*)::float count, avg(amount)::float mean
        from read_parquet('{warehouse}/transactions/*.parquet')
        where epoch_us(event_time) >= {cutoff_us - 30 * DAY_US} and epoch_us(event_time) < {cutoff_us}
        group by 1 order by 1
    """)
    assert found is not None
    return found.to_arrow_table()


def new_scene(shop: Path, folder: Path, url: str) -> Scene:
    """The shop's transactions in a warehouse whose runs are the test's own."""
    warehouse, scratch = folder / "warehouse", folder / "scratch"
    warehouse.mkdir(parents=True)
    scratch.mkdir()
    (warehouse / "transactions").symlink_to(shop / "warehouse" / "transactions")
    return Scene(url, warehouse, shop / "releases", scratch)


class SignalsItself:
    """A watcher that sends its own process a signal when a stage begins, or when it has moved."""

    def __init__(self, do: str) -> None:
        name, self._stage, *when = do.split(":") if do else ["", "", ""]
        self._signal = getattr(signal, name, None)
        self._when = when[0] if when else "began"

    def began(self, stage: str) -> None:
        self._maybe(stage, "began")

    def moved(self, stage: str, share: float) -> None:
        self._maybe(stage, "moved")

    def ended(self, stage: str, rows: int, seconds: float) -> None:
        self._maybe(stage, "ended")

    def _maybe(self, stage: str, when: str) -> None:
        if (stage, when) == (self._stage, self._when) and self._signal is not None:
            number, self._signal = self._signal, None
            os.kill(os.getpid(), number)


def wait_for(what: str, check: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Poll until `check()` is true."""
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def main() -> int:
    from batch_scorer.errors import BatchError
    from batch_scorer.runner import run_job
    from service_kit import logs
    from tests.shop_job import QUICK, waiting

    logs.configure("batch")
    settings, cutoff_us, do, *mark = sys.argv[1:]
    job = waiting(Path(mark[0])) if mark else QUICK
    try:
        run_job(job, int(cutoff_us), BatchSettings.model_validate(json.loads(settings)), watcher=SignalsItself(do))
    except BatchError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
