"""One run of a job from its cut-off to the pointer: stages in order, each told to the watcher and timed.

    inputs       lease taken, warehouse writable, release verified, schemas and days of the sources checked
    spark        a session
    population   the keys, counted
    score        rows, features, scores, outputs: written as Parquet parts below <warehouse>/runs/
    check        counts, nulls, constants, drift, golden rows
    write        parts into Redis as blocks of the run, yielding to online reads
    count        what Redis holds, block by block; missing ones are written again
    publish      the pointer moves; the run before expires after some days

Whatever ends a run earlier leaves the published one as it is. What it leaves behind `pruning` removes.
"""

from __future__ import annotations

import getpass
import platform
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeVar

import pyarrow as pa
import redis
from feature_store.source_files import DatasetError
from feature_store.warehouse import Warehouse
from model_release.rollout import Pointer
from model_release.rollout_store import RolloutStore
from service_kit.logs import get_logger

from batch_scorer import spark_work
from batch_scorer.checks import run_checks
from batch_scorer.distributions import Distribution
from batch_scorer.errors import BatchError, ChecksFailed, InputError, StorageError, Superseded
from batch_scorer.history import METRICS, REPORT, Folder, Manifest, summary, utc
from batch_scorer.hold import heartbeat, terminable
from batch_scorer.inputs import Inputs, planned_files
from batch_scorer.job import BatchJob, OpenRelease
from batch_scorer.pace import Pace
from batch_scorer.progress import Silent, Watcher
from batch_scorer.pruning import scratch_of, tidy_scratch
from batch_scorer.registry import Lease, Registry
from batch_scorer.releases import choose_release
from batch_scorer.run_metrics import deliver_metrics, exposition
from batch_scorer.run_report import report_page
from batch_scorer.runs import Run, first_record, new_run_id
from batch_scorer.settings import BatchSettings
from batch_scorer.sizes import cut

_WRITE_TRIES = 3

T = TypeVar("T")
log = get_logger(__name__)


def run_job(
    job: BatchJob, cutoff_us: int, settings: BatchSettings, *, force: str = "", watcher: Watcher | None = None
) -> Manifest:
    """Runs `job` for the cut-off and publishes; returns the manifest as it stands in the warehouse.

    `force`: a reason to publish although checks fail or a newer cut-off is published; recorded.

    Raises:
        BatchError: see `errors`; the published run is as it was before.
        RedisError: Redis is away.
    """
    with redis.Redis.from_url(settings.redis_url, socket_timeout=10, socket_connect_timeout=5) as client:
        return _Runner(job, cutoff_us, settings, force, watcher or Silent(), client).run()


class _Runner:
    def __init__(
        self, job: BatchJob, cutoff_us: int, settings: BatchSettings, force: str, watcher: Watcher, client: redis.Redis
    ) -> None:
        self._job, self._cutoff_us, self._settings, self._force = job, cutoff_us, settings, force
        self._watcher, self._client, self._registry = watcher, client, Registry(client)
        self._run_id = new_run_id(job.name, cutoff_us)
        self._began_us = time.time_ns() // 1_000
        self._who = f"{getpass.getuser()}@{socket.gethostname()}"
        self._seconds: dict[str, float] = {}
        self._rows: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._generation = 0
        self._lost = threading.Event()
        #: Ended by something that this code does not know: Spark's log is then worth keeping.
        self._unexplained = False

    def run(self) -> Manifest:
        self._refuse_older()
        with ExitStack() as ending, terminable():
            lease = self._registry.acquire(self._job.name, self._run_id, self._settings.lease_s, self._settings.wait_s)
            ending.callback(self._quietly, lambda: self._registry.release(lease))
            ending.enter_context(heartbeat(self._registry, lease, self._settings.lease_s, self._lost))
            warehouse = Warehouse(self._settings.warehouse)
            folder = Folder(warehouse.store, self._run_id)
            try:
                return self._stages(lease, warehouse, folder, ending)
            except ChecksFailed:
                raise
            except BaseException as error:
                self._unexplained = isinstance(error, Exception) and not known(error)
                self._discard(folder)
                raise

    def _stages(self, lease: Lease, warehouse: Warehouse, folder: Folder, ending: ExitStack) -> Manifest:
        job, settings = self._job, self._settings
        scratch = scratch_of(settings.scratch, self._run_id)
        ending.callback(lambda: tidy_scratch(scratch, keep_log=self._unexplained))
        release = self._stage("inputs", lambda: self._inputs(warehouse, folder))
        spark = self._stage("spark", lambda: ending.enter_context(spark_work.session(settings, job, scratch)))
        work = spark_work.SparkWork(Inputs(spark, warehouse, self._cutoff_us, release, job), folder, settings)
        ending.callback(work.close)
        population = self._stage("population", lambda: work.count_population(self._moved("population")), int)
        if not population:
            raise InputError(f"job {job.name}: its population before the cut-off is empty")
        tasks = spark.sparkContext.defaultParallelism
        blocks, parts = cut(job, population, settings.block_rows, settings.part_mb << 20, tasks)
        made, duplicates, distributions = self._stage(
            "score", lambda: work.score(blocks, parts, self._moved("score")), lambda m: sum(p.rows for p in m[0])
        )
        manifest = Manifest(
            run=self._run_id, job=job.name, model=job.model, release=release.id, generation=self._generation,
            cutoff=utc(self._cutoff_us),
            cutoff_us=self._cutoff_us, outcome="ready", who=self._who, forced=self._force,
            began=utc(self._began_us), population=population, rows=sum(part.rows for part in made), blocks=blocks,
            parts=made, checks=[], outputs={name: summary(found) for name, found in distributions.items()},
            seconds=self._seconds, stage_rows=self._rows, files_read=self._files, versions=_versions(),
        )  # fmt: skip
        before = self._registry.current(job.name)
        last = None if before is None else Folder(folder.store, before.run).manifest()
        manifest = self._stage("check", lambda: self._checked(work, folder, manifest, duplicates, distributions, last))
        run = first_record(job, self._run_id, self._cutoff_us, release.id, self._began_us, self._who).now(
            blocks=blocks, rows=manifest.rows, forced=self._force
        )
        self._registry.record(lease, run)
        manifest = self._stage("write", lambda: self._write(work, run, manifest, before), lambda m: m.rows)
        self._stage("count", lambda: self._count(work, run, manifest), lambda _: manifest.rows)
        folder.write_manifest(manifest)
        previous = self._stage("publish", lambda: self._publish(lease, run))
        manifest = manifest.model_copy(
            update={
                "outcome": "published", "previous": previous, "ended": utc(time.time_ns() // 1_000),
                "seconds": dict(self._seconds), "stage_rows": dict(self._rows),
            }
        )  # fmt: skip
        self._record(folder, manifest, last)
        return manifest

    # -- stages

    def _refuse_older(self) -> None:
        current = self._registry.current(self._job.name)
        if current is not None and current.cutoff_us > self._cutoff_us and not self._force:
            raise Superseded(
                f"job {self._job.name}: {current.run} with a newer cut-off is published; --force REASON replaces it"
            )

    def _inputs(self, warehouse: Warehouse, folder: Folder) -> OpenRelease:
        policy = self._client.config_get("maxmemory-policy").get("maxmemory-policy")
        if policy != "noeviction":
            raise StorageError(f"Redis has maxmemory-policy {policy!r}, which drops rows; set it to noeviction")
        release = choose_release(self._job, self._settings.releases, self._settings.release, self._pointer())
        folder.begin(self._who, self._cutoff_us)
        try:
            for need in self._job.needs:
                self._files[need.source] = len(planned_files(warehouse, need, self._cutoff_us))
        except DatasetError as error:
            raise InputError(str(error)) from error
        return release

    def _pointer(self) -> Pointer | None:
        """Where the model's pointer stands; not asked where a release is named."""
        if self._settings.release:
            return None
        try:
            pointer = RolloutStore(self._client).read(self._job.model)
        except ValueError as error:
            raise StorageError(str(error)) from error
        self._generation = pointer.generation if pointer is not None else 0
        return pointer

    def _checked(
        self, work: spark_work.SparkWork, folder: Folder, manifest: Manifest, duplicates: int,
        distributions: Mapping[str, Distribution], last: Manifest | None,
    ) -> Manifest:  # fmt: skip
        golden = work.golden() if self._job.checks.golden else ""
        other = last.release if last is not None and last.release != manifest.release else ""
        bins = None if last is None else {name: output.bins for name, output in last.outputs.items()}
        checks = run_checks(
            self._job, manifest.population, manifest.rows, duplicates, distributions, bins, golden, other
        )
        manifest = manifest.model_copy(update={"checks": checks})
        if (failed := manifest.failed) and not self._force:
            refused = manifest.model_copy(update={"outcome": "refused", "ended": utc(time.time_ns() // 1_000)})
            self._record(folder, refused, last)
            raise ChecksFailed(
                f"run {self._run_id} is kept in {folder.shown} and not published: "
                + "; ".join(
                    f"{check.name}: {check.detail} (found {check.found:.4g}, limit {check.limit:.4g})"
                    for check in failed
                )
            )
        return manifest

    def _write(self, work: spark_work.SparkWork, run: Run, manifest: Manifest, before: Run | None) -> Manifest:
        with Pace(self._settings.redis_url, run, before, self._settings.read_p99_ms):
            written = work.write(run.run, manifest.parts, self._moved("write"))
        return manifest.model_copy(
            update={"redis_bytes": sum(w.bytes for w in written), "paused_s": sum(w.paused_s for w in written)}
        )

    def _count(self, work: spark_work.SparkWork, run: Run, manifest: Manifest) -> None:
        """Count the run's rows in Redis against the parts'; from then on they do not expire. Raises StorageError."""
        found = self._patiently(lambda: self._registry.count(run))
        for _ in range(_WRITE_TRIES - 1):
            if found.rows == run.rows:
                break
            log.warning("Redis lost rows, writing them again", run=run.run, rows=found.rows, of=run.rows)
            work.write(run.run, manifest.parts, self._moved("count"))
            found = self._patiently(lambda: self._registry.count(run))
        self._registry.fill(run, found.missing, self._settings.unpublished_s)
        found = self._registry.count(run, keep=True)
        if found.rows != run.rows or found.missing:
            raise StorageError(
                f"run {run.run}: Redis holds {found.rows:,} rows, the run has {run.rows:,}; not published"
            )

    def _publish(self, lease: Lease, run: Run) -> str:
        run = run.now(state="written", published_us=time.time_ns() // 1_000)
        previous = self._registry.publish(lease, run, bool(self._force))
        self._quietly(lambda: self._registry.expire_others(run, self._settings.superseded_s))
        return previous

    def _record(self, folder: Folder, manifest: Manifest, last: Manifest | None) -> None:
        """Manifest, metrics and report. The run is what it is by now: what fails here is told and does no harm."""
        metrics = exposition(manifest)
        self._quietly(lambda: folder.write_manifest(manifest))
        self._quietly(lambda: folder.write(REPORT, report_page(manifest, last).encode()))
        self._quietly(lambda: deliver_metrics(self._settings.pushgateway, manifest, metrics, folder, METRICS))

    # -- around the stages

    def _stage(self, name: str, work: Callable[[], T], rows: Callable[[T], int] = lambda _: 0) -> T:
        if self._lost.is_set():
            raise Superseded(f"run {self._run_id}: a newer run took over the job; this one stops")
        self._watcher.began(name)
        began = time.monotonic()
        result = work()
        self._seconds[name] = round(time.monotonic() - began, 3)
        if count := rows(result):
            self._rows[name] = count
        self._watcher.ended(name, count, self._seconds[name])
        log.info("stage ended", run=self._run_id, stage=name, seconds=self._seconds[name], rows=count)
        return result

    def _moved(self, stage: str) -> Callable[[float], None]:
        return lambda share: self._watcher.moved(stage, share)

    def _patiently(self, read: Callable[[], T]) -> T:
        """Redis may be away for a while, as for the writers."""
        end = time.monotonic() + self._settings.redis_patience_s
        while True:
            try:
                return read()
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _discard(self, folder: Folder) -> None:
        """After a failure: of the run only its record stays, as far as Redis and the warehouse can be reached."""
        run = self._quietly(lambda: self._registry.runs(self._job.name).get(self._run_id))
        current = self._quietly(lambda: self._registry.current(self._job.name))
        if current is not None and current.run == self._run_id:
            return  # published: what failed came after
        if run is not None:
            # Executors may still be at their last blocks: prune finds them by the run's record.
            self._quietly(lambda: self._registry.delete_rows(run))
        self._quietly(folder.delete)

    def _quietly(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except Exception as error:
            log.warning("could not be done at the end of a run", run=self._run_id, reason=str(error))
            return None


def known(error: Exception) -> bool:
    """Whether the error says all there is to know of it."""
    return isinstance(error, BatchError) and error.exit_code != BatchError.exit_code


def _versions() -> dict[str, str]:
    import pyspark

    return {"python": platform.python_version(), "spark": pyspark.__version__, "arrow": pa.__version__}
