"""`trine batch` as a scheduler and an operator use it: what is printed, and the exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from batch_scorer.registry import Registry
from pyspark.sql import SparkSession
from tests.batch_scene import Scene, write_release
from trine_cli.main import main


class Trine:
    """Calls the command line in this process, which has a Spark already."""

    def __init__(self, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
        self._scene, self._capsys = scene, capsys

    def __call__(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, what `--json` printed, and stderr."""
        with pytest.raises(SystemExit) as ended:
            main(["batch", *words, "--redis-url", self._scene.url, "--json"])
        out, error = self._capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out.splitlines()[-1]) if out.endswith("}\n") else {}, error

    def run(self, cutoff: str, *more: str) -> tuple[int, dict[str, Any], str]:
        scene = self._scene
        return self(
            "run", "shop", "--job-module", "tests.shop_job", "--cutoff", cutoff, "--warehouse", str(scene.warehouse),
            "--releases", str(scene.releases), *more,
        )  # fmt: skip


@pytest.fixture
def trine(scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Trine:
    monkeypatch.setenv("TRINE_BATCH_SCRATCH", str(scene.scratch))
    # It would bind this whole process's logs to what pytest closes after the test; now they go to stdout.
    monkeypatch.setattr("service_kit.logs.configure", lambda *_: None)
    return Trine(scene, capsys)


def test_nights_at_the_command_line(trine: Trine, scene: Scene, spark: SparkSession) -> None:
    code, monday, error = trine.run("2018-08-25")
    assert (code, monday["outcome"], monday["rows"]) == (0, "published", 700)
    stages = [line.split()[1] for line in error.splitlines() if line.startswith("shop ")]
    assert stages[::2] == ["inputs", "spark", "population", "score", "check", "write", "count", "publish"]
    assert "rows/s" in error
    code, tuesday, _ = trine.run("2018-08-26")
    assert (code, tuesday["previous"]) == (0, monday["run"])

    code, found, _ = trine("read", "shop", "1", "nobody")
    assert (code, found["run"], found["stale"]) == (0, tuesday["run"], True)
    assert set(found["predictions"]["1"]) == {"score", "customer_mean_amount_30d"}
    assert found["predictions"]["nobody"] is None
    assert trine("read", "shop", "nobody")[0] == 2
    assert trine("read", "weather", "1")[0] == 3

    code, found, _ = trine("rollback", "shop")
    assert (code, found["run"], found["before"]) == (0, monday["run"], tuesday["run"])
    _, found, _ = trine("runs", "shop")
    assert {run["run"]: run["state"] for run in found["runs"]} == {
        monday["run"]: "published", tuesday["run"]: "superseded"
    }  # fmt: skip
    assert trine("rollback", "shop", "--to", "shop-nowhere")[0] == 3

    code, _, error = trine.run("2018-08-24")
    assert (code, monday["run"] in error) == (6, True)
    code, forced, _ = trine.run("2018-08-24", "--force", "the newer ones are wrong")
    assert (code, forced["forced"]) == (0, "the newer ones are wrong")
    assert trine("prune", "--warehouse", str(scene.warehouse)) [1] == {
        "redis": [], "expired": [], "warehouse": [], "scratch": []
    }  # fmt: skip


def test_runs_that_are_not_published(trine: Trine, scene: Scene) -> None:
    assert trine.run("2019-01-01")[0] == 3
    assert trine("run", "rain", "--cutoff", "2018-08-25", "--warehouse", "w", "--releases", "r")[0] == 2
    registry: Registry = scene.registry()
    registry.acquire("shop", "shop-20180801t000000-00000000", 30.0, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRINE_BATCH_WAIT_S", "0")
        assert trine.run("2018-08-25")[0] == 75
    assert trine("rollback", "shop")[0] == 3


def test_the_release_is_the_newest_or_the_one_named(trine: Trine, scene: Scene, spark: SparkSession) -> None:
    first = next(scene.releases.iterdir()).name
    newer = write_release(scene.releases, seed=4)
    try:
        assert trine.run("2018-08-25")[1]["release"] == newer.id
        code, _, error = trine.run("2018-08-25", "--release", first)
        assert (code, "drift:score" in error, newer.id in error) == (5, True, True), "another model, other scores"
        assert trine.run("2018-08-25", "--release", first, "--force", "back to it")[1]["release"] == first
    finally:
        for file in newer.path.iterdir():
            file.unlink()
        newer.path.rmdir()
