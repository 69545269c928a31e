"""Leases, fences, pointers and what pruning takes away, on a real Redis, without Spark."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_scorer.errors import JobBusy, Superseded
from batch_scorer.job import Output
from batch_scorer.predictions import Predictions, RunLost, UnknownJob
from batch_scorer.pruning import prune
from batch_scorer.runs import Run, block_key, first_record
from batch_scorer.testing import publish_toy_run
from feature_store.warehouse_store import WarehouseStore
from tests.batch_scene import MONDAY_US, TUESDAY_US, Scene, wait_for
from tests.shop_job import JOB

OUTPUTS = [Output("visits", "int64")]


def rows(visits: int) -> dict[str, dict[str, object]]:
    return {str(key): {"visits": visits} for key in range(500)}


@pytest.fixture
def toy(redis_url: str, tmp_path: Path) -> Scene:
    (tmp_path / "scratch").mkdir()
    return Scene(redis_url, tmp_path / "warehouse", tmp_path / "releases", tmp_path / "scratch")


def publish(scene: Scene, cutoff_us: int, visits: int) -> Run:
    with scene.client() as client:
        return publish_toy_run(client, "shop", cutoff_us, rows(visits), OUTPUTS)


def test_one_lease_at_a_time_and_the_last_one_publishes(toy: Scene) -> None:
    registry = toy.registry()
    first = registry.acquire("shop", "shop-20180825t000000-00000001", 0.3, 0.0)
    assert registry.at_work("shop") == first.run
    with pytest.raises(JobBusy, match=first.run):
        registry.acquire("shop", "shop-20180825t000000-00000002", 5.0, 0.0)
    assert registry.acquire("shop", first.run, 0.3, 0.0) == first, "asked again, since the reply was lost"
    second = registry.acquire("shop", "shop-20180825t000000-00000002", 5.0, 2.0)
    assert int(second.token.split()[0]) == int(first.token.split()[0]) + 1
    assert (registry.renew(first, 5.0), registry.renew(second, 5.0)) == (False, True)
    run = first_record(JOB, first.run, MONDAY_US, "shop-0", 1, "me")
    for refused in (lambda: registry.record(first, run), lambda: registry.publish(first, run, force=True)):
        with pytest.raises(Superseded, match="took over"):
            refused()
    registry.release(first)
    assert registry.at_work("shop") == second.run
    assert registry.publish(second, run.now(run=second.run), force=False) == ""
    assert registry.publish(second, run.now(run=second.run), force=False) == "", "the reply was lost"


def test_times_of_a_run_survive_the_scripts_to_the_microsecond(toy: Scene) -> None:
    monday, tuesday = publish(toy, MONDAY_US, 1), publish(toy, TUESDAY_US, 2)
    registry = toy.registry()
    known = registry.runs("shop")
    assert known[monday.run] == monday.now(superseded_us=tuesday.published_us)
    assert known[tuesday.run] == registry.current("shop") == tuesday.now(previous=monday.run)
    registry.roll_back("shop", "", 3_600)
    assert registry.current("shop") == monday
    assert registry.runs("shop")[tuesday.run].superseded_us > tuesday.published_us


def test_reading_says_what_is_missing(toy: Scene) -> None:
    with toy.client() as client:
        with pytest.raises(UnknownJob, match="shop"):
            toy.read("1")
        run = publish(toy, MONDAY_US, 1)
        assert toy.read("1", "nobody").values == ({"visits": 1}, None)
        assert Predictions(client).read("shop", []).values == ()
        client.setrange(block_key(run.run, 0), 60, b"\xff\xff")
        with pytest.raises(RunLost, match=f"block 0 of run {run.run}"):
            toy.read(*map(str, range(500)))
        client.delete(block_key(run.run, 0))
        with pytest.raises(RunLost, match="not in Redis"):
            toy.read(*map(str, range(500)))


def test_prune_takes_the_empty_folder_that_a_late_task_of_a_failed_run_made(toy: Scene) -> None:
    kept = publish(toy, MONDAY_US, 0)
    for run in (kept.run, "shop-20180827t000000-0000dead"):
        (toy.warehouse / "runs" / "shop" / run).mkdir(parents=True)
    pruned = prune(toy.registry(), toy.settings(), WarehouseStore(toy.warehouse))
    assert pruned.warehouse == ["shop-20180827t000000-0000dead"]
    assert toy.folders() == [kept.run]


def test_prune_leaves_what_is_read_and_takes_what_is_not(toy: Scene) -> None:
    registry = toy.registry()
    oldest, monday, tuesday = publish(toy, MONDAY_US, 0), publish(toy, MONDAY_US, 1), publish(toy, TUESDAY_US, 2)
    with toy.client() as client:
        # As if what set the expiry of the oldest had died after a few blocks, a week ago.
        for block in range(3, oldest.blocks):
            client.persist(block_key(oldest.run, block))
        long_ago = registry.runs("shop")[oldest.run].now(superseded_us=oldest.published_us - 10**13)
        client.hset("trine:batch:shop:runs", oldest.run, long_ago.to_json())
        dead = registry.acquire("shop", "shop-20180827t000000-0000dead", 2.0, 1.0)
        registry.record(dead, tuesday.now(run=dead.run, state="writing"))
        client.set(block_key(dead.run, 7), b"a row")
        settings = toy.settings()
        (toy.scratch / dead.run).mkdir()
        pruned = prune(registry, settings, None)
        assert (pruned.redis, pruned.expired, pruned.scratch) == ([], [oldest.run], []), "the dead one is at work"
        wait_for("its lease to end", lambda: not registry.at_work("shop"))
        pruned = prune(registry, settings, None)
        assert (pruned.redis, pruned.expired, pruned.scratch) == ([dead.run], [], [dead.run])
        assert sorted(toy.blocks()) == sorted([monday.run, tuesday.run]) == sorted(registry.runs("shop"))
        assert toy.read("1").values == ({"visits": 2},)
        assert registry.roll_back("shop", "", 60)[1].run == monday.run
