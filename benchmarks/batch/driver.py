"""One run of a benchmark's job in a process of its own. `python -m benchmarks.batch.driver JSON`.

Prints its manifest and when, by the clock on the wall, each stage began and ended.
"""

from __future__ import annotations

import json
import sys
import time

from batch_scorer.runner import run_job
from batch_scorer.settings import BatchSettings
from service_kit import logs

from benchmarks.batch import jobs
from benchmarks.batch.entities import CUTOFF_US


class Windows:
    """Notes when stages begin and end: seconds since the epoch."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = {}

    def began(self, stage: str) -> None:
        self.of[stage] = [time.time()]

    def moved(self, stage: str, share: float) -> None: ...

    def ended(self, stage: str, rows: int, seconds: float) -> None:
        self.of[stage].append(time.time())


def main() -> None:
    logs.configure("batch", "warning")
    asked = json.loads(sys.argv[1])
    job = {"publish": jobs.PUBLISH, "score": jobs.SCORE}[asked.pop("job")]
    windows = Windows()
    manifest = run_job(job, CUTOFF_US, BatchSettings.model_validate(asked), watcher=windows)
    print(json.dumps({"manifest": manifest.model_dump(mode="json"), "windows": windows.of}))


if __name__ == "__main__":
    main()
