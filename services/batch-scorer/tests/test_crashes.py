"""Whatever dies in the middle of a run: the run before is served throughout, a second start completes, prune clears."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis
from batch_scorer.errors import StorageError, Superseded
from batch_scorer.pruning import Pruned, prune
from batch_scorer.runner import run_job
from batch_scorer.runs import block_key
from batch_scorer.spark_work import failure
from batch_scorer.testing import publish_toy_run
from feature_store.warehouse_store import WarehouseStore
from py4j.protocol import ERROR, Py4JError, get_return_value  # type: ignore[import-untyped]
from pyspark.sql import SparkSession
from tests.batch_scene import CUSTOMERS, MONDAY_US, TUESDAY_US, Scene, new_scene, spent, wait_for
from tests.shop_job import QUICK, KillsItsWorker, waiting
from trine_cli.local.fixtures import KeptDatabase, PrivateRedis
from trine_cli.local.redis_server import RedisServer
from trine_cli.local.server import Launch

#: Where a driver is killed: at the beginning of a stage, or when Spark has done some of it.
STAGES = ("inputs", "population", "score:moved", "write", "count", "publish")

#: Words in the command line of Spark's processes: the driver's JVM, an executor's, their Python daemons and workers.
JVM, EXECUTOR, PYTHON = "deploy.SparkSubmit", "CoarseGrainedExecutorBackend", "-m batch_scorer.python_daemon"

EVERYBODY: dict[str, dict[str, object]] = {
    str(i): {"score": 0.5, "customer_mean_amount_30d": 1.0} for i in range(CUSTOMERS)
}


def pruned(scene: Scene) -> Pruned:
    return prune(scene.registry(), scene.settings(), WarehouseStore(scene.warehouse))


def publish_monday(scene: Scene) -> str:
    """Yesterday's run, in a database that holds nothing else."""
    with scene.client() as client:
        client.flushdb()
        return publish_toy_run(client, "shop", MONDAY_US, EVERYBODY, QUICK.outputs, block_rows=16).run


def expected(scene: Scene) -> dict[str, dict[str, float]]:
    """Tuesday's outputs."""
    rows = spent(scene.warehouse, TUESDAY_US).to_pylist()
    return {row["key"]: {"score": row["largest"] / 2, "customer_mean_amount_30d": row["mean"]} for row in rows}


def assert_a_second_start_completes(scene: Scene, monday: str) -> None:
    """Yesterday's is served whole until then, and today's rows are right; after prune nothing else is left."""
    assert scene.read("1").run.run == monday
    assert scene.everything() == EVERYBODY
    tuesday = run_job(QUICK, TUESDAY_US, scene.settings()).run
    assert_only_tuesday(scene, monday, tuesday)


def assert_only_tuesday(scene: Scene, monday: str, tuesday: str) -> None:
    assert scene.read("1").run.run == tuesday
    assert scene.everything() == expected(scene)
    pruned(scene)
    assert scene.folders() == [tuesday]
    assert sorted(scene.blocks()) == sorted(scene.registry().runs("shop")) == [monday, tuesday]
    assert not list(scene.scratch.iterdir())


def processes(pid: int, word: str = "") -> list[psutil.Process]:
    """Below a process, those with the word in their command line."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill(victims: list[psutil.Process]) -> None:
    """kill -9 of all of them."""
    assert victims
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def in_redis(scene: Scene, pid: int) -> list[psutil.Process]:
    """Python workers below a process that are at work in Redis."""
    found = []
    for process in processes(pid, PYTHON):
        with suppress(psutil.Error):
            if any(c.raddr and c.raddr.port == urlsplit(scene.url).port for c in process.net_connections("tcp")):
                found.append(process)
    return found


def hold_writes(scene: Scene) -> None:
    """Redis reads on, and lets who writes wait."""
    with scene.client() as client:
        client.client_pause(120_000, all=False)


def let_writes(scene: Scene) -> None:
    with scene.client() as client:
        client.client_unpause()


def stopped(driver: subprocess.Popen[bytes]) -> bool:
    assert driver.poll() is None, f"the driver ended with {driver.returncode}"
    return bool(psutil.Process(driver.pid).status() == psutil.STATUS_STOPPED)


@contextmanager
def reading_throughout(scene: Scene, run: str) -> Iterator[list[object]]:
    """A reader that asks for everybody, over and over; yields what it found wrong: anything not from `run`."""
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        keys = [str(i) for i in range(CUSTOMERS)]
        while not done.wait(0.05):
            found = scene.read(*keys)
            if found.run.run != run or None in found.values:
                wrong.append(found.run.run)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield wrong
    finally:
        done.set()
        thread.join(20)


@pytest.fixture(scope="module")
def killed(
    shop: Path, tmp_path_factory: pytest.TempPathFactory, kept_database: KeptDatabase
) -> dict[str, tuple[Scene, str]]:
    """For each stage a scene in which Monday was published and Tuesday's driver killed itself with -9 at that stage.

    All drivers run at a time, since most of one's life is the start of a JVM. Stage -> scene, Monday's run.
    """
    scenes = {}
    for stage in STAGES:
        scene = new_scene(shop, tmp_path_factory.mktemp("killed"), kept_database())
        scenes[stage] = scene, publish_monday(scene)
    for half in (STAGES[::2], STAGES[1::2]):
        drivers = {s: scenes[s][0].driver(TUESDAY_US, f"SIGKILL:{s}", master="local[1]") for s in half}
        for stage, driver in drivers.items():
            assert driver.wait(400) == -signal.SIGKILL, f"the driver was to be killed at {stage}"
    return scenes


@pytest.mark.timeout(900)  # the first of them waits for six drivers
@pytest.mark.parametrize("stage", STAGES)
def test_a_driver_killed_at_any_stage(killed: dict[str, tuple[Scene, str]], stage: str, spark: SparkSession) -> None:
    scene, monday = killed[stage]
    assert scene.read("1").run.run == monday
    assert None not in scene.everything().values()
    written = stage in ("count", "publish")
    assert len(scene.blocks()) == (2 if written else 1)
    assert len(scene.folders()) == (0 if stage == "inputs" else 1)
    if stage in ("inputs", "publish"):
        # A second start does not wait for anybody to prune.
        tuesday = run_job(QUICK, TUESDAY_US, scene.settings()).run
        assert scene.read("1").run.run == tuesday
        kept, folders = [monday, tuesday], [tuesday]
    else:
        wait_for("the lease to expire", lambda: not scene.registry().at_work("shop"))
        kept, folders = [monday], []
    pruned(scene)
    assert scene.folders() == folders
    assert sorted(scene.blocks()) == kept
    assert sorted(scene.registry().runs("shop")) == kept
    assert not list(scene.scratch.iterdir())
    with scene.client() as client:
        names = {key.decode().split(":")[-1] for key in client.scan_iter("trine:batch:*") if b"shop-" not in key}
    assert names == {"jobs", "current", "runs", "fence"}


def test_a_paused_driver_that_wakes_cannot_publish(scene: Scene, spark: SparkSession) -> None:
    driver = scene.driver(MONDAY_US, "SIGSTOP:publish", lease_s=1.0)
    try:
        wait_for("the driver to pause", lambda: stopped(driver), 200)
        with pytest.raises(Exception, match="no published run"):
            scene.read("1")
        other = run_job(QUICK, MONDAY_US, scene.settings()).run
        pruned(scene)
        driver.send_signal(signal.SIGCONT)
        assert driver.wait(60) == Superseded.exit_code
    finally:
        driver.kill()
    assert scene.read("1").run.run == other
    assert sorted(scene.blocks()) == [other] == scene.folders()


@dataclass
class KillsPython:
    """kill -9 of Python in this process's Spark: the daemon and its workers while one scores, a worker in the write."""

    scene: Scene
    killed: list[str] = field(default_factory=list)

    def began(self, stage: str) -> None:
        if stage == "write":
            hold_writes(self.scene)

    def moved(self, stage: str, share: float) -> None:
        if stage in self.killed:
            return
        if stage == "score" and self.scene.mark.exists():
            kill(processes(os.getpid(), PYTHON))
            self.killed.append(stage)
        if stage == "write" and (workers := in_redis(self.scene, os.getpid())):
            kill(workers)
            let_writes(self.scene)
            self.killed.append(stage)

    def ended(self, stage: str, rows: int, seconds: float) -> None: ...


def test_python_killed_in_executors(scene: Scene, spark: SparkSession) -> None:
    """Where it dies at each try of a task, the run ends; where it dies once in each stage, the run completes."""
    monday = publish_monday(scene)
    with reading_throughout(scene, monday) as wrong:
        with pytest.raises(StorageError, match=r"died at every try.*Python worker"):
            run_job(replace(QUICK, scoring=KillsItsWorker("score")), TUESDAY_US, scene.settings())
        assert scene.folders() == []
    assert wrong == []
    watcher = KillsPython(scene)
    tuesday = run_job(waiting(scene.mark), TUESDAY_US, scene.settings(), watcher=watcher).run
    assert watcher.killed == ["score", "write"]
    assert_only_tuesday(scene, monday, tuesday)


@pytest.mark.timeout(600)
def test_an_executor_killed_while_it_scores_and_writes(scene: Scene) -> None:
    """An executor with a JVM of its own, which Spark replaces; executor pods are killed in `k8s-tests`."""
    monday = publish_monday(scene)
    with reading_throughout(scene, monday) as wrong:
        # Its memory is the default of an executor: with less Spark would wait for one for ever.
        driver = scene.driver(TUESDAY_US, "SIGSTOP:write", waits=True, master="local-cluster[1,1,1024]")
        try:
            wait_for("a worker to score", scene.mark.exists, 250)
            kill(processes(driver.pid, EXECUTOR))
            wait_for("the write to begin", lambda: stopped(driver), 200)
            hold_writes(scene)
            driver.send_signal(signal.SIGCONT)
            wait_for("a worker to write", lambda: in_redis(scene, driver.pid), 110)
            assert wrong == []
            kill(processes(driver.pid, EXECUTOR))
            let_writes(scene)
            assert driver.wait(150) == 0
        finally:
            let_writes(scene)
            driver.kill()
    assert_only_tuesday(scene, monday, scene.read("1").run.run)


@pytest.fixture(scope="module")
def without_spark(
    shop: Path, tmp_path_factory: pytest.TempPathFactory, kept_database: KeptDatabase
) -> dict[str, tuple[Scene, str]]:
    """For each stage a scene in which Tuesday's driver lost Spark's JVM by kill -9, and ended. As `killed`."""
    scenes, drivers = {}, {}
    try:
        for stage in ("score", "write"):
            scene = new_scene(shop, tmp_path_factory.mktemp("without-spark"), kept_database())
            scenes[stage] = scene, publish_monday(scene)
            do = "SIGSTOP:write" if stage == "write" else ""
            drivers[stage] = scene.driver(TUESDAY_US, do, waits=stage == "score", master="local[1]")
        wait_for("a worker to score", scenes["score"][0].mark.exists, 250)
        lose_spark(drivers["score"])
        scene = scenes["write"][0]
        wait_for("the write to begin", lambda: stopped(drivers["write"]), 200)
        hold_writes(scene)
        drivers["write"].send_signal(signal.SIGCONT)
        wait_for("a worker to write", lambda: in_redis(scene, drivers["write"].pid), 110)
        lose_spark(drivers["write"], lambda: let_writes(scene))
    finally:
        let_writes(scene)
        for driver in drivers.values():
            driver.kill()
    return scenes


def lose_spark(driver: subprocess.Popen[bytes], then: Callable[[], None] = lambda: None) -> None:
    """kill -9 of a driver's JVM: the driver ends soon, with the code for another start; nothing below it lives."""
    below = processes(driver.pid)
    kill(processes(driver.pid, JVM))
    then()
    assert driver.wait(60) == StorageError.exit_code
    wait_for("its processes to end", lambda: not any(process.is_running() for process in below))


def test_a_call_that_gets_no_answer_from_spark() -> None:
    with pytest.raises(Py4JError) as error:
        get_return_value(ERROR, None, "o1", "count")
    assert isinstance(failure(error.value), StorageError)


@pytest.mark.timeout(600)  # the first of them waits for two drivers
@pytest.mark.parametrize("stage", ["score", "write"])
def test_spark_killed_under_its_driver(
    without_spark: dict[str, tuple[Scene, str]], stage: str, spark: SparkSession
) -> None:
    scene, monday = without_spark[stage]
    said = scene.log.read_text()
    assert said.count("Spark's driver process ended") == 1, said
    assert "Traceback" not in said, said
    assert scene.folders() == []
    assert_a_second_start_completes(scene, monday)


def test_redis_restarted_while_rows_are_written(
    shop: Path, tmp_path: Path, private_redis: PrivateRedis, spark: SparkSession
) -> None:
    server = private_redis(appendfsync="always")
    scene = new_scene(shop, tmp_path / "scene", server.url)
    monday = run_job(QUICK, MONDAY_US, scene.settings()).run
    back = threading.Thread(target=server.start)

    class Restarter:
        def began(self, stage: str) -> None:
            if stage == "write":
                server.stop()
                # The writers find nobody there and go on trying.
                threading.Timer(1.0, back.start).start()
            if stage == "count":
                # What a Redis that syncs every second may have lost with its last second.
                with scene.client() as client:
                    run = next(run for run in scene.blocks() if run != monday)
                    client.unlink(*(block_key(run, block) for block in range(0, 40, 3)))

        def moved(self, stage: str, share: float) -> None: ...
        def ended(self, stage: str, rows: int, seconds: float) -> None: ...

    tuesday = run_job(QUICK, TUESDAY_US, scene.settings(), watcher=Restarter())
    back.join(20)
    assert scene.read("1").run.run == tuesday.run
    assert None not in scene.everything().values()
    assert sorted(scene.blocks()) == [monday, tuesday.run]


class RedisThatCanBeFull(RedisServer):
    """Learns from an error that its disk is full, and not from the signal that comes with a limit."""

    def _launch(self) -> Launch:
        launch = super()._launch()
        return replace(launch, argv=["sh", "-c", """trap '' XFSZ; exec "$0" "$@\"""", *launch.argv])

    def fill(self, what: str) -> None:
        """Its memory or its disk is full from now on."""
        with self.connect() as client:
            if what == "memory":
                # So far below what it holds that no client's buffers, when they go, make room again.
                client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
            else:
                self._limit_files(0)
            wait_for(f"Redis to find its {what} full", lambda: not self._takes(client))

    def empty(self) -> None:
        with self.connect() as client:
            client.config_set("maxmemory", 0)
            self._limit_files(psutil.RLIM_INFINITY)
            wait_for("Redis to write again", lambda: self._takes(client))
            client.unlink("filler")

    def _limit_files(self, size: int) -> None:
        psutil.Process(self.pid).rlimit(psutil.RLIMIT_FSIZE, (size, psutil.RLIM_INFINITY))

    def _takes(self, client: redis.Redis) -> bool:
        try:
            client.append("filler", bytes(4_096))
        except redis.ResponseError:
            return False
        return True


@pytest.mark.parametrize(
    ("full", "reason"),
    [
        ("memory", "command not allowed when used memory > 'maxmemory'"),
        ("disk", "MISCONF Errors writing to the AOF file"),
    ],
    ids=["memory", "disk"],
)
def test_a_redis_that_is_full_while_rows_are_written(
    shop: Path, tmp_path: Path, spark: SparkSession, full: str, reason: str
) -> None:
    with RedisThatCanBeFull(tmp_path / "redis") as server:
        scene = new_scene(shop, tmp_path / "scene", server.url)
        monday = publish_monday(scene)

        class Filler:
            def began(self, stage: str) -> None:
                if stage == "write":
                    server.fill(full)

            def moved(self, stage: str, share: float) -> None: ...
            def ended(self, stage: str, rows: int, seconds: float) -> None: ...

        with reading_throughout(scene, monday) as wrong:
            with pytest.raises(StorageError, match=rf"^Redis did not take rows of [\w-]+: {reason}"):
                run_job(QUICK, TUESDAY_US, scene.settings(), watcher=Filler())
            assert scene.folders() == []
            server.empty()
        assert wrong == []
        assert_a_second_start_completes(scene, monday)
        server.restart()
        assert scene.everything() == expected(scene)


def test_a_full_disk(scene: Scene, spark: SparkSession) -> None:
    monday = run_job(QUICK, MONDAY_US, scene.settings()).run
    with reading_throughout(scene, monday) as wrong:
        driver: subprocess.Popen[bytes] | None = None
        try:
            driver = scene.driver(TUESDAY_US, file_bytes=1_000)
            assert driver.wait(200) == 4
        finally:
            if driver is not None:
                driver.kill()
    assert wrong == []

    def only_monday() -> bool:
        # The dead driver's JVM may still be at its last part.
        pruned(scene)
        return scene.folders() == [monday] == sorted(scene.blocks()) and not list(scene.scratch.iterdir())

    wait_for("nothing to be left behind", only_monday)
