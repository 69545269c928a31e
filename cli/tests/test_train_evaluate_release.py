"""`trine train fraud`, `evaluate fraud` and `release`: the path of a user, and what goes wrong on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cards"
    generate(GeneratorParameters(customers=600, terminals=1200, days=72, seed=3), path)
    return path


def test_train_then_evaluate_then_verify(trine: Any, dataset: Path, tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    code, trained, printed = trine(
        "train", "fraud", "--transactions", dataset, "--test-start", "2018-06-05", "--releases", releases,
        "--review-budget", 12, "--deny-precision", 0.8, "--unrecorded", "answer",
    )  # fmt: skip
    assert code == 0, printed
    assert "budget 12" in printed
    release = releases / trained["release"]
    assert trained["test"]["auc_roc"] > 0.7

    code, measured, printed = trine(
        "evaluate", "fraud", "--release", release, "--transactions", dataset,
        "--from", "2018-06-05", "--to", "2018-06-12", "--fallback",
    )  # fmt: skip
    assert code == 0
    assert measured["fallback"] == trained["fallback"]["test"]
    assert "Without the model" in printed
    assert {name: measured[name] for name in trained["test"]} == trained["test"]

    code, shown, printed = trine("release", "show", release)
    assert (code, shown["policy"]["unrecorded"]) == (0, "answer")
    assert "# Fraud model" in printed
    code, verified, _ = trine("release", "verify", release)
    assert (code, verified["release"]) == (0, trained["release"])

    shutil.copytree(release, releases / "fraud-000000000000")
    code, listed, _ = trine("release", "list", "--releases", releases)
    assert code == 0
    by_name = {item["release"]: item["error"] for item in listed["releases"]}
    assert by_name[trained["release"]] is None
    assert "must be named as its release" in by_name["fraud-000000000000"]

    (release / "golden_scores.f32").write_bytes(bytes((release / "golden_scores.f32").stat().st_size))
    code, _, printed = trine("release", "verify", release)
    assert code == 3
    assert "golden_scores.f32: sha256 is" in printed


def test_who_leaves(trine: Any, tmp_path: Path) -> None:
    data, releases = tmp_path / "data", tmp_path / "releases"
    code, made, _ = trine(
        "data", "generate", "--out", data, "--customers", 500, "--terminals", 400, "--days", 200,
        "--churn-rate", 0.15, "--seed", 2,
    )  # fmt: skip
    assert (code, made["parameters"]["churn_rate"]) == (0, 0.15)
    options = ("--transactions", data, "--cutoff", "2018-09-15")
    code, trained, printed = trine("train", "churn", *options, "--releases", releases, "--cutoffs", 2)
    assert code == 0, printed
    assert set(trained["test"]) == set(trained["validation"]) == {"network", "recency and frequency"}
    code, measured, printed = trine("evaluate", "churn", *options, "--release", releases / trained["release"])
    assert code == 0, printed
    assert measured["network"] == trained["test"]["network"]
    _, _, printed = trine("release", "list", "--releases", releases)
    assert str(measured["network"]["average_precision"]) in printed
    code, _, printed = trine("evaluate", "churn", "--transactions", data, "--cutoff", "2018-10-15",
                             "--release", releases / trained["release"])  # fmt: skip
    assert (code, "are needed, found" in printed) == (3, True)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--test-start", "2018-04-20"], 3, "training days 2018-03-23 to 2018-03-29: no transactions on 7 of them"),
        (["--test-start", "next week"], 2, "--test-start: 'next week' is no day"),
        (["--test-start", "2018-06-05T12:00"], 2, "is not the start of a day"),
        (["--test-start", "2018-06-05", "--train-days", "0"], 2, "--train-days"),
    ],
)
def test_what_cannot_be_trained_is_named(
    trine: Any, dataset: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    found, _, printed = trine("train", "fraud", "--transactions", dataset, "--releases", tmp_path / "r", *options)
    assert found == code
    assert message in printed.replace("\n", " ")
    assert not (tmp_path / "r").exists()


def test_what_cannot_be_evaluated_is_named(trine: Any, dataset: Path, tmp_path: Path) -> None:
    words = ["evaluate", "fraud", "--release", tmp_path / "none", "--transactions", dataset]
    code, _, printed = trine(*words, "--from", "2018-06-05", "--to", "2018-06-12")
    assert code == 3
    assert "is this a release?" in printed
    code, _, printed = trine(*words, "--from", "2018-06-12", "--to", "2018-06-05")
    assert code == 2
    assert "must be after --from" in printed
    code, _, printed = trine("release", "list", "--releases", tmp_path / "none")
    assert code == 3
    assert "is not a folder" in printed
