"""What a run asks of Spark: the session, the frames of a job's functions, and the work that executors do with them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from feature_store.source_files import DatasetError
from feature_store.spark_session import spark_session
from model_release.errors import ReleaseError

from batch_scorer.block_writer import WRITTEN_COLUMNS, BlockWriter, Written
from batch_scorer.bundles import Bundler, by_part
from batch_scorer.distributions import Distribution
from batch_scorer.errors import BatchError, InputError, JobError, StorageError
from batch_scorer.history import Folder, Part
from batch_scorer.hold import meanwhile
from batch_scorer.inputs import Inputs
from batch_scorer.job import KEY, BatchJob, scored_rows
from batch_scorer.part_writer import PART_COLUMNS, PartWriter
from batch_scorer.rows_scoring import GoldenCheck, Scorer
from batch_scorer.settings import BatchSettings
from batch_scorer.spark_kubernetes import configuration, on_kubernetes, remove_stale_executors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Advance = Callable[[float], None]
#: What executors raise on purpose, by name: Spark hands it to the driver as text.
_KNOWN: dict[str, type[BatchError]] = {
    "DatasetError": InputError,
    "DefinitionError": InputError,
    "ReleaseError": InputError,
    "JobError": JobError,
    "InputError": InputError,
    "StorageError": StorageError,
}
_RAISED = re.compile(r"^(?:[\w.]*\.)?(\w+(?:Error|Exception)): (.*)$", re.MULTILINE)
_REFUSED = re.compile(r"No space left on device|File too large|Disk quota exceeded|Read-only file system")
_DIED = re.compile(r"Python worker exited unexpectedly|ExecutorLostFailure[^\n]*")
_UNREADABLE = re.compile(r"error while reading file (\S+?)\.? ")
_NO_JVM = ("Py4JNetworkError", "ConnectionRefusedError", "ConnectionResetError")
_LOCAL = re.compile(r"local(?:\[([^,\]]+)\])?")


@contextlib.contextmanager
def session(settings: BatchSettings, job: BatchJob, folder: Path) -> Iterator[SparkSession]:
    """A session whose JVM, log and spilled data live in `folder`; the caller's own where the process has one."""
    from pyspark.sql import SparkSession

    if (theirs := SparkSession.getActiveSession()) is not None:
        yield theirs
        return
    spark = start_spark(settings, job, folder)
    try:
        # Python on the executors starts here, with its imports, and not in the middle of a stage's work.
        spark.range(0, 1, 1, 1).mapInArrow(_as_they_come, "id long").collect()
        yield spark
    finally:
        with contextlib.suppress(Exception):  # its JVM may be gone, and the run's outcome is known
            spark.stop()


def start_spark(settings: BatchSettings, job: BatchJob, folder: Path) -> SparkSession:
    """A new session."""
    conf = {
        "spark.task.maxFailures": str(settings.task_tries),
        "spark.python.worker.faulthandler.enabled": "true",
        "spark.python.daemon.module": "batch_scorer.python_daemon",
    }
    if _LOCAL.fullmatch(settings.master):
        # Workers import jobs from where the driver does.
        conf["spark.executorEnv.PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if on_kubernetes(settings):
        conf |= configuration(settings, job.name)
        remove_stale_executors(settings, job.name)
    return spark_session(
        f"trine batch {job.name}", folder, tried_again(settings.master, settings.task_tries),
        settings.driver_memory, conf,
    )  # fmt: skip


def _as_they_come(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
    return batches


def tried_again(master: str, tries: int) -> str:
    """The master, and for `local` ones how often a task is tried, which Spark takes nowhere else."""
    local = _LOCAL.fullmatch(master)
    return f"local[{local[1] or '1'},{tries}]" if local else master


class SparkWork:
    """The Spark side of one run."""

    def __init__(self, inputs: Inputs, folder: Folder, settings: BatchSettings) -> None:
        self._inputs, self._job, self._folder, self._settings = inputs, inputs.job, folder, settings
        self._spark = inputs.spark
        self._population: DataFrame | None = None

    def count_population(self, advance: Advance) -> int:
        """Counts the population's keys, which evaluates it; kept on disk where the job says so. Raises BatchError."""
        from pyspark import StorageLevel

        with self._failures(), self._watched("population", advance):
            self._population = self._job.population(self._inputs)
            _has(self._population.columns, (KEY,), f"population of {self._job.name}")
            if self._job.keep_population:
                return self._population.persist(StorageLevel.DISK_ONLY).count()
            return self._population.select(KEY).count()

    def score(self, blocks: int, parts: int, advance: Advance) -> tuple[list[Part], int, dict[str, Distribution]]:
        """Rows, features, scores and outputs, written as parts: (parts, duplicate keys, distribution by output)."""
        assert self._population is not None, "the population comes first"
        job, inputs = self._job, self._inputs
        with self._failures(), self._watched("score", advance):
            rows = job.features(inputs, job.rows(inputs, self._population))
            scorer = Scorer(job.scoring, str(inputs.release.path)) if job.scoring.adds else None
            if job.combine is scored_rows and scorer is not None:
                # Rows go to Python once, to be scored and bundled.
                made = rows
                _has(made.columns + list(job.scoring.adds), job.schema.names, f"features of {job.name}")
            else:
                made = job.combine(inputs, self._population, self._scored(rows, scorer))
                _has(made.columns, job.schema.names, f"combine of {job.name}")
                made, scorer = made.select(*job.schema.names), None
            placed = by_part(made, parts, Bundler(job.schema, blocks, scorer))
            writer = PartWriter(inputs.warehouse.uri, self._folder.path, job.schema, blocks)
            found = sorted(placed.mapInArrow(writer, PART_COLUMNS).collect(), key=lambda row: str(row["file"]))
        distributions: dict[str, Distribution] = {}
        for row in found:
            for name, text in json.loads(row["distributions"]).items():
                one = Distribution.from_json(text)
                distributions[name] = distributions[name] + one if name in distributions else one
        parts_made = [Part(file=row["file"], rows=row["rows"], bytes=row["bytes"]) for row in found]
        return parts_made, sum(row["duplicates"] for row in found), distributions

    def _scored(self, rows: DataFrame, scorer: Scorer | None) -> DataFrame:
        from pyspark.sql.pandas.types import from_arrow_schema

        if scorer is None:
            return rows
        adds = dict(self._job.scoring.adds)
        kept = [field for field in rows.schema if field.name not in adds]
        return rows.mapInArrow(scorer, type(rows.schema)([*kept, *from_arrow_schema(pa.schema(list(adds.items())))]))

    def close(self) -> None:
        """Let go of what Spark keeps of the run."""
        if self._population is not None:
            with contextlib.suppress(Exception):  # its JVM may be gone
                self._population.unpersist()

    def golden(self) -> str:
        """Scores the release's golden rows in an executor; what differs, or an empty text."""
        check = GoldenCheck(self._job.scoring, str(self._inputs.release.path))
        with self._failures():
            return str(self._tasks(1).mapInArrow(check, "differs string").collect()[0][0])

    def write(self, run: str, parts: list[Part], advance: Advance) -> list[Written]:
        """Writes the parts into Redis as blocks of the run."""
        settings = self._settings
        writer = BlockWriter(
            settings.redis_url, self._inputs.warehouse.uri, self._folder.path, tuple(part.file for part in parts), run,
            settings.unpublished_s, settings.redis_patience_s,
        )  # fmt: skip
        with self._failures(), self._watched("write", advance):
            found = self._tasks(len(parts)).mapInArrow(writer, WRITTEN_COLUMNS).collect()
        return [Written(**row.asDict()) for row in found]

    def _tasks(self, count: int) -> DataFrame:
        """So many rows, their number in each, a task each; without an RDD, which would want Python workers anew."""
        return self._spark.range(0, count, 1, count)

    @contextlib.contextmanager
    def _watched(self, stage: str, advance: Advance) -> Iterator[None]:
        """Tells how much of the Spark work inside is done: tasks that ended, of those known so far."""
        context = self._spark.sparkContext
        context.setJobGroup(stage, f"{self._job.name}: {stage}", interruptOnCancel=True)
        tracker = context.statusTracker()

        def watch() -> bool:
            try:
                stages = [
                    info
                    for job in tracker.getJobIdsForGroup(stage)
                    if (found := tracker.getJobInfo(job)) is not None
                    for number in found.stageIds
                    if (info := tracker.getStageInfo(number)) is not None
                ]
            except Exception:  # its JVM may be gone, and the stage's own call says so
                return False
            if total := sum(info.numTasks for info in stages):
                advance(sum(info.numCompletedTasks for info in stages) / total)
            return True

        with meanwhile(f"watch-{stage}", 0.25, watch):
            yield

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Errors of the driver's side and of executors become the kinds of `errors`."""
        try:
            yield
        except (DatasetError, ReleaseError) as error:
            raise InputError(str(error)) from error
        except BatchError:
            raise
        except Exception as error:
            raise failure(error) from error


def failure(error: Exception) -> BatchError:
    """What Spark's account of a failure comes down to: what an executor raised on purpose, a storage that refused,
    executors that died, a JVM that is gone; else its first line."""
    text = str(error)
    for name, message in reversed(_RAISED.findall(text)):
        if name in _KNOWN:
            return _KNOWN[name](message)
    if unreadable := _UNREADABLE.search(text):
        return InputError(f"not a readable Parquet file: {unreadable[1]}")
    if refused := _REFUSED.search(text):
        return StorageError(f"a disk refused what Spark wrote: {refused[0]}")
    if died := _DIED.search(text):
        return StorageError(f"executors died at every try of a task, killed or without the memory they need: {died[0]}")
    kind = type(error).__name__
    # Of an error in the JVM Py4J shows a trace: without one there was no answer.
    if kind in _NO_JVM or (kind == "Py4JError" and "Trace:" not in text):
        return StorageError(f"Spark's driver process ended: {error}")
    return BatchError(f"Spark failed: {kind}: {text.strip().splitlines()[0] if text.strip() else ''}")


def _has(columns: Sequence[str], wanted: Sequence[str], what: str) -> None:
    if missing := [name for name in wanted if name not in columns]:
        raise JobError(f"{what}: gives no column {', '.join(missing)}; its columns are {', '.join(columns)}")
