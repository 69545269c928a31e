"""A run from the warehouse to the pointer, and what stands when it does not get there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from batch_scorer.errors import ChecksFailed, InputError, JobBusy, StorageError, Superseded
from batch_scorer.history import Manifest
from batch_scorer.job import BatchJob, Checks, Output
from batch_scorer.pruning import prune
from batch_scorer.runner import run_job
from batch_scorer.runs import block_key
from feature_store.source_files import DAY_US, day_name
from feature_store.warehouse_store import WarehouseStore
from model_release import open_release
from model_release.rollout import Pointer, promoted
from model_release.rollout_store import RolloutStore
from model_release.scoring_module import load
from prometheus_client.parser import text_string_to_metric_families
from pyspark.sql import SparkSession
from tests.batch_scene import CUSTOMERS, FIRST_DAY_US, MONDAY_US, TUESDAY_US, Scene, spent, write_release
from tests.shop_job import JOB, WrongGolden, one_amount_for_all, without_some


def expected(scene: Scene, cutoff_us: int) -> dict[str, dict[str, float]]:
    """Key -> outputs, by SQL over the files and the module called directly."""
    table = spent(scene.warehouse, cutoff_us)
    names = ("largest", "count", "mean")
    rows = np.column_stack([table.column(name).to_numpy() for name in names]).astype(np.float32)
    (release,) = scene.releases.iterdir()
    scores = load(release)(np.ascontiguousarray(rows))
    keys = table.column(0).to_pylist()
    return {
        key: {"score": float(score), "customer_mean_amount_30d": float(mean)}
        for key, score, mean in zip(keys, scores, rows[:, 2], strict=True)
    }


def test_a_run_is_published_whole_and_the_next_takes_its_place(scene: Scene, spark: SparkSession) -> None:
    monday = run_job(JOB, MONDAY_US, scene.settings())
    assert scene.everything() == expected(scene, MONDAY_US)
    assert scene.read("nobody").values == (None,)
    assert (monday.outcome, monday.population, monday.rows) == ("published", CUSTOMERS, CUSTOMERS)
    assert all(check.passed for check in monday.checks)
    assert {"rows", "distinct", "nulls:score", "same:score", "golden"} <= {check.name for check in monday.checks}
    assert not [check for check in monday.checks if check.name.startswith("drift")]

    folder = scene.warehouse / "runs" / "shop" / monday.run
    assert Manifest.model_validate_json((folder / "manifest.json").read_bytes()) == monday
    parts = [pq.read_table(folder / part.file) for part in monday.parts]
    assert sum(part.num_rows for part in parts) == CUSTOMERS
    assert (
        dict(zip(parts[0]["key"].to_pylist(), parts[0]["score"].to_pylist(), strict=True)).items()
        <= {key: values["score"] for key, values in expected(scene, MONDAY_US).items()}.items()
    )
    page = (folder / "report.html").read_text()
    assert monday.run in page
    assert "http" not in page.replace("http://www.w3.org", "")
    metrics = {f.name: f for f in text_string_to_metric_families((folder / "metrics.prom").read_text())}
    assert metrics["trine_batch_rows"].samples[0].value == CUSTOMERS
    assert not list(scene.scratch.iterdir())

    tuesday = run_job(JOB, TUESDAY_US, scene.settings())
    assert tuesday.previous == monday.run
    assert scene.everything() == expected(scene, TUESDAY_US)
    assert [check.passed for check in tuesday.checks if check.name == "drift:score"] == [True]
    client, registry = scene.client(), scene.registry()
    lifetimes = {run: [client.ttl(block_key(run, n)) for n in range(monday.blocks)] for run in scene.blocks()}
    assert set(lifetimes[tuesday.run]) == {-1}
    assert min(lifetimes[monday.run]) > 0

    before, now = registry.roll_back("shop", "", 3_600)
    assert (before.run, now.run) == (tuesday.run, monday.run)
    assert scene.everything() == expected(scene, MONDAY_US)
    assert {client.ttl(block_key(monday.run, n)) for n in range(monday.blocks)} == {-1}
    assert all(0 < client.ttl(block_key(tuesday.run, n)) <= 3_600 for n in range(tuesday.blocks))
    registry.roll_back("shop", tuesday.run, 3_600)
    assert scene.read("1").run.run == tuesday.run
    with pytest.raises(InputError, match="shop-nowhere"):
        registry.roll_back("shop", "shop-nowhere", 3_600)
    client.delete(block_key(monday.run, 3))
    with pytest.raises(StorageError, match="1 of"):
        registry.roll_back("shop", monday.run, 3_600)
    assert scene.read("1").run.run == tuesday.run

    with pytest.raises(Superseded, match=tuesday.run):
        run_job(JOB, MONDAY_US, scene.settings())
    forced = run_job(JOB, MONDAY_US, scene.settings(), force="Tuesday was wrong")
    assert scene.read("1").run.forced == "Tuesday was wrong"
    assert scene.everything() == expected(scene, MONDAY_US)
    assert json.loads((scene.warehouse / "runs" / "shop" / forced.run / "manifest.json").read_text())["forced"]
    pruned = prune(registry, scene.settings(), WarehouseStore(scene.warehouse))
    assert (pruned.redis, pruned.warehouse, pruned.scratch) == ([], [], [])


@pytest.mark.parametrize(
    ("job", "failing"),
    [
        (dataclasses.replace(JOB, combine=without_some), "rows"),
        (dataclasses.replace(JOB, features=one_amount_for_all), "same:score"),
        (dataclasses.replace(JOB, scoring=WrongGolden("score")), "golden"),
        (dataclasses.replace(JOB, checks=Checks(max_psi=-1.0, drift=("score",))), "drift:score"),
    ],
    ids=["rows", "same", "golden", "drift"],
)
def test_a_run_that_fails_a_check_is_kept_and_not_published(
    scene: Scene, spark: SparkSession, job: BatchJob, failing: str
) -> None:
    """The drift's case compares to a run published here; a limit below zero stands for a distribution that moved."""
    monday = run_job(JOB, MONDAY_US, scene.settings()) if failing == "drift:score" else None
    with pytest.raises(ChecksFailed, match=failing) as refused:
        run_job(job, TUESDAY_US, scene.settings())
    kept = next(name for name in scene.folders() if name in str(refused.value))
    manifest = Manifest.model_validate_json((scene.warehouse / "runs" / "shop" / kept / "manifest.json").read_bytes())
    assert manifest.outcome == "refused"
    assert failing in [check.name for check in manifest.failed]
    assert scene.registry().current("shop") is None if monday is None else scene.read("1").run.run == monday.run
    assert set(scene.blocks()) == ({monday.run} if monday else set())
    if failing == "drift:score":
        forced = run_job(job, TUESDAY_US, scene.settings(), force="the shop has a sale")
        assert scene.read("1").run.run == forced.run
        assert [check.name for check in forced.failed] == ["drift:score"]
    assert kept in scene.folders()
    prune(scene.registry(), scene.settings(), WarehouseStore(scene.warehouse))
    assert kept in scene.folders(), "what was refused is kept for some weeks"
    prune(scene.registry(), scene.settings(refused_days=0.0), WarehouseStore(scene.warehouse))
    assert kept not in scene.folders()


class TestInputs:
    """Found before Spark starts; nothing of the run stays."""

    @pytest.fixture
    def days(self, scene: Scene, shop: Path) -> Path:
        """The transactions' files, to be changed."""
        folder = scene.warehouse / "transactions"
        folder.unlink()
        folder.mkdir()
        for file in (shop / "warehouse" / "transactions").iterdir():
            (folder / file.name).symlink_to(file)
        return folder

    def refused(self, scene: Scene, kind: type[Exception], *named: str) -> None:
        with pytest.raises(kind) as error:
            run_job(JOB, MONDAY_US, scene.settings())
        assert [text for text in named if text not in str(error.value)] == []
        assert scene.folders() == []
        assert scene.registry().at_work("shop") == ""
        assert not list(scene.scratch.iterdir())

    def test_a_missing_day_is_named(self, scene: Scene, days: Path) -> None:
        day = day_name(FIRST_DAY_US + 20 * DAY_US)
        (days / f"{day}.parquet").unlink()
        self.refused(scene, InputError, day)

    def test_a_corrupt_file_is_named(self, scene: Scene, days: Path) -> None:
        file = days / f"{day_name(FIRST_DAY_US + 20 * DAY_US)}.parquet"
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[:-20])
        self.refused(scene, InputError, file.name)

    def test_a_missing_column_is_named(self, scene: Scene, days: Path) -> None:
        file = days / f"{day_name(FIRST_DAY_US + 20 * DAY_US)}.parquet"
        table = pq.read_table(file).drop_columns(["amount"])
        file.unlink()
        pq.write_table(table, file)
        self.refused(scene, InputError, file.name, "amount")

    def test_files_outside_the_range_are_not_opened(self, scene: Scene, spark: SparkSession, days: Path) -> None:
        for day in (0, 33):
            file = days / f"{day_name(FIRST_DAY_US + day * DAY_US)}.parquet"
            file.unlink()
            file.write_bytes(b"no Parquet")
        assert run_job(JOB, MONDAY_US, scene.settings()).files_read == {"transactions": 30}

    def test_a_release_that_is_not_there(self, scene: Scene, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="shop"):
            run_job(JOB, MONDAY_US, scene.settings(releases=tmp_path))
        (release,) = scene.releases.iterdir()
        assert open_release(release).manifest.model == "shop"

    def test_a_warehouse_that_cannot_be_written(self, scene: Scene) -> None:
        # Nobody, root neither, may make folders there.
        (scene.warehouse / "runs").symlink_to("/proc/sys")
        with pytest.raises(StorageError, match="runs/shop"):
            run_job(JOB, MONDAY_US, scene.settings())

    def test_another_run_at_work(self, scene: Scene) -> None:
        lease = scene.registry().acquire("shop", "shop-20180801t000000-00000000", 30.0, 0.0)
        with pytest.raises(JobBusy, match=lease.run):
            run_job(JOB, MONDAY_US, scene.settings(wait_s=0.3))
        assert scene.registry().at_work("shop") == lease.run


def test_a_column_that_a_job_promises_and_does_not_make(scene: Scene, spark: SparkSession) -> None:
    job = dataclasses.replace(JOB, outputs=(Output("score"), Output("price")))
    with pytest.raises(Exception, match="price"):
        run_job(job, MONDAY_US, scene.settings())
    assert scene.folders() == []


def test_a_run_scores_with_the_promoted_release_and_says_which_pointer_it_read(
    scene: Scene, spark: SparkSession
) -> None:
    (first,) = scene.releases.iterdir()
    newer = write_release(scene.releases, seed=4)
    with scene.client() as client:
        store = RolloutStore(client)
        pointer = store.begin(Pointer(JOB.model, first.name))
        monday = run_job(JOB, MONDAY_US, scene.settings())
        assert (monday.release, monday.generation) == (first.name, 1)
        store.move(pointer, promoted(pointer, newer.id), "test")
        tuesday = run_job(JOB, TUESDAY_US, scene.settings(), force="random weights drift")
        assert (tuesday.release, tuesday.generation) == (newer.id, 2)
        named = run_job(JOB, TUESDAY_US, scene.settings(release=first.name), force="compared")
        assert (named.release, named.generation) == (first.name, 0)
        gone = store.read(JOB.model)
        assert gone is not None
        store.move(gone, promoted(gone, f"{JOB.model}-000000000000"), "test")
        with pytest.raises(InputError, match="generation 3"):
            run_job(JOB, TUESDAY_US, scene.settings(), force="again")
