"""`trine data ... --kind interactions`, `train recommender`, `evaluate recommender`: a user's path, and its stones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_from_interactions_to_a_verified_release(trine: Any, tmp_path: Path) -> None:
    data, releases = tmp_path / "data", tmp_path / "releases"
    words = ["data", "generate", "--kind", "interactions", "--out", data, "--days", 40, "--users", 200, "--items", 80]
    code, made, printed = trine(*words, "--views", 30)
    assert (code, made["made"], made["parameters"]["users"]) == (0, True, 200), printed
    assert trine(*words, "--views", 30)[1] == {**made, "made": False}

    words = ["train", "recommender", "--interactions", data, "--releases", releases, "--no-tune"]
    code, trained, printed = trine(*words, "--until", "2018-05-06", "--seed", 4)
    assert code == 0, printed
    assert trained["splits"]["user"]["towers"]["ndcg_at_10"] > trained["splits"]["user"]["popularity"]["ndcg_at_10"]
    release = releases / trained["release"]

    code, measured, printed = trine("evaluate", "recommender", "--release", release, "--interactions", data)
    assert code == 0, printed
    assert set(measured) == {"release", "user", "time", "after training"}
    assert measured["after training"]["release"]["users"] > 50

    code, verified, _ = trine("release", "verify", release)
    assert (code, verified["golden_rows"]) == (0, 256)
    code, shown, printed = trine("release", "show", release)
    assert (code, shown["kind"]) == (0, "recommender")
    assert "# Recommender" in printed
    code, listed, printed = trine("release", "list", "--releases", releases)
    assert (code, [item["error"] for item in listed["releases"]]) == (0, [None])
    assert "ndcg at 10" in " ".join(printed.split())

    code, _, printed = trine(
        "evaluate", "fraud", "--release", release, "--transactions", data, "--from", "2018-04-01", "--to", "2018-04-02"
    )
    assert code == 3
    assert "this is a recommender release, a tabular one is needed" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["generate", "--kind", "interactions", "--terminals", "5"],
            "--terminals means nothing for --kind interactions",
        ),
        (["generate", "--users", "5"], "--users means nothing for --kind transactions"),
        (["import", "x.csv", "--kind", "interactions", "--currency", "EUR"], "--currency means nothing"),
    ],
)
def test_options_of_another_kind_are_refused(trine: Any, tmp_path: Path, words: list[str], message: str) -> None:
    code, _, printed = trine("data", *words, "--out", tmp_path / "data")
    assert code == 2
    assert message in printed
    assert not (tmp_path / "data").exists()


def test_importing_ratings(trine: Any, tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    code, made, printed = trine(
        "data", "import", tmp_path / "u.data", "--kind", "interactions", "--out", tmp_path / "data"
    )
    assert (code, made["interactions"], made["kinds"]) == (0, 2, {"rating": 2}), printed
    code, _, printed = trine(
        "train", "recommender", "--interactions", tmp_path / "data", "--releases", tmp_path / "releases"
    )
    assert code == 3
    assert "more users, items or days are needed" in printed
    (tmp_path / "bad.csv").write_text("user,item,timestamp,rating\n1,2,3,x\n")
    code, found, printed = trine(
        "data", "import", tmp_path / "bad.csv", "--kind", "interactions", "--out", tmp_path / "bad"
    )
    assert (code, found["bad_rows"]["rows"]) == (3, 1)
    assert "out of range" in printed
