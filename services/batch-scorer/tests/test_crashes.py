"""Whatever dies in the middle of a run: the run before is served throughout, a second start completes, prune clears."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from batch_scorer.errors import Superseded
from batch_scorer.pruning import Pruned, prune
from batch_scorer.runner import run_job
from batch_scorer.runs import block_key
from batch_scorer.testing import publish_toy_run
from feature_store.warehouse_store import WarehouseStore
from pyspark.sql import SparkSession
from tests.batch_scene import CUSTOMERS, MONDAY_US, TUESDAY_US, Scene, new_scene, wait_for
from tests.shop_job import QUICK, KillsItsWorker
from trine_cli.local.fixtures import PrivateRedis
from trine_cli.local.redis_server import RedisServer

#: Where a driver is killed: at the beginning of a stage, or when Spark has done some of it.
STAGES = ("inputs", "population", "score:moved", "write", "count", "publish")

EVERYBODY: dict[str, dict[str, object]] = {
    str(i): {"score": 0.5, "customer_mean_amount_30d": 1.0} for i in range(CUSTOMERS)
}


def pruned(scene: Scene) -> Pruned:
    return prune(scene.registry(), scene.settings(), WarehouseStore(scene.warehouse))


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
    shop: Path, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer
) -> dict[str, tuple[Scene, str]]:
    """For each stage a scene in which Monday was published and Tuesday's driver killed itself with -9 at that stage.

    All drivers run at a time, since most of one's life is the start of a JVM. Stage -> scene, Monday's run.
    """
    scenes = {}
    for number, stage in enumerate(STAGES):
        url = redis_server.database(redis_server.databases - 1 - number)
        scene = new_scene(shop, tmp_path_factory.mktemp("killed"), url)
        with scene.client() as client:
            client.flushdb()
            yesterday = publish_toy_run(client, "shop", MONDAY_US, EVERYBODY, QUICK.outputs, block_rows=16).run
        scenes[stage] = scene, yesterday
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
        wait_for("the driver to pause", lambda: psutil.Process(driver.pid).status() == psutil.STATUS_STOPPED, 200)
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


def test_a_python_worker_killed_while_it_scores(scene: Scene, spark: SparkSession) -> None:
    run = run_job(replace(QUICK, scoring=KillsItsWorker("score")), MONDAY_US, scene.settings())
    assert run.rows == CUSTOMERS
    assert None not in scene.everything().values()


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
