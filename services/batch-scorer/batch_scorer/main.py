"""Composition root of a batch run, for schedulers: `python -m batch_scorer.main`, told all by TRINE_BATCH_* variables.

    TRINE_BATCH_JOB_MODULE=models.churn.batch_churn TRINE_BATCH_CUTOFF=2018-08-08T00:00:00Z python -m batch_scorer.main

SIGTERM ends the run and cleans up. Exit codes: `batch_scorer.errors`.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from datetime import UTC, datetime

from redis.exceptions import RedisError
from rich.console import Console
from service_kit import logs
from service_kit.settings import SettingsError, load

from batch_scorer.errors import BatchError, JobError, StorageError
from batch_scorer.job import BatchJob
from batch_scorer.progress import StageLines
from batch_scorer.runner import run_job
from batch_scorer.settings import BatchSettings

log = logs.get_logger(__name__)


def main() -> int:
    """Runs the job that the settings name. Returns the exit code."""
    logs.configure("batch")
    try:
        settings = load(BatchSettings)
        logs.configure("batch", settings.log_level)
        job = job_in(settings.job_module)
        lines = StageLines(job.name, Console(stderr=True))
        try:
            manifest = run_job(job, cutoff_us(settings.cutoff), settings, force=settings.force, watcher=lines)
        finally:
            lines.close()
    except SettingsError as error:
        log.error("start refused", reason=str(error))
        return JobError.exit_code
    except BatchError as error:
        log.error("run not published", reason=str(error), kind=type(error).__name__)
        return error.exit_code
    except RedisError as error:
        log.error("run not published", reason=str(error), kind="Redis")
        return StorageError.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    log.info("run published", run=manifest.run, rows=manifest.rows, seconds=manifest.seconds)
    return 0


def job_in(module: str) -> BatchJob:
    """The `JOB` of a module. Raises JobError."""
    try:
        job = importlib.import_module(module).JOB
    except (ImportError, AttributeError, ValueError) as error:
        raise JobError(f"job module {module!r}: must be importable and have a JOB: {error}") from error
    if not isinstance(job, BatchJob):
        raise JobError(f"job module {module!r}: its JOB is a {type(job).__name__}, must be a batch_scorer.job.BatchJob")
    return job


def cutoff_us(text: str) -> int:
    """Microseconds of a cut-off like 2018-08-08 or 2018-08-08T00:00:00Z; without a zone it is UTC. Raises JobError.

    `today`: the last midnight UTC, for schedulers.
    """
    try:
        moment = datetime.fromisoformat(datetime.now(UTC).date().isoformat() if text == "today" else text)
    except ValueError as error:
        raise JobError(f"cut-off {text!r}: must be a day or time, like 2018-08-08T00:00:00Z, or `today`") from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond


if __name__ == "__main__":
    sys.exit(main())
