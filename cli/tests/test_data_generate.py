"""`trine data generate` as a process: what it prints, what it leaves, and what a kill in the middle leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from feature_store.dataset import DatasetError

from models.fraud.sources import load_fraud_reports, load_transactions

TRINE = [sys.executable, "-m", "trine_cli.main"]
SMALL = ["--customers", "60", "--terminals", "600", "--days", "5"]
DEADLINE_S = 60.0


def generate(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TRINE, "data", "generate", *options], capture_output=True, text=True, check=False)


def test_it_makes_a_dataset_once_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    first = generate(*SMALL, "--out", str(out), "--json")
    assert first.returncode == 0
    figures = json.loads(first.stdout)
    assert figures["made"] is True
    assert figures["transactions"] == load_transactions(out).num_rows > 0
    assert figures["fraud_reports"] == load_fraud_reports(out).num_rows
    described = json.loads((out / "dataset.json").read_text())
    assert described == {k: v for k, v in figures.items() if k not in ("dataset", "made")}
    again = generate(*SMALL, "--out", str(out), "--json")
    assert json.loads(again.stdout) == {**figures, "made": False}
    other = generate(*SMALL, "--seed", "1", "--out", str(out))
    assert other.returncode == 3
    assert "--overwrite" in other.stderr


def test_bad_parameters_exit_3_and_name_the_parameter(tmp_path: Path) -> None:
    refused = generate("--customers", "0", "--out", str(tmp_path / "dataset"))
    assert refused.returncode == 3
    assert "customers is 0" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_leaves_nothing_that_loads(tmp_path: Path, sent: signal.Signals) -> None:
    out = tmp_path / "dataset"
    # Enough days that the signal comes while they are written.
    options = ["--customers", "200", "--terminals", "400", "--days", "3000", "--out", str(out)]
    process = subprocess.Popen([*TRINE, "data", "generate", *options], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not list(tmp_path.glob(".dataset.*.partial/transactions/*.parquet")):
            assert time.monotonic() < deadline, "no day was written in time"
            assert process.poll() is None, "it ended before a day was seen"
            time.sleep(0.005)
        process.send_signal(sent)
        assert process.wait(DEADLINE_S) != 0
    finally:
        process.kill()
        process.wait()
    with pytest.raises(DatasetError):
        load_transactions(out)
    for folder in tmp_path.iterdir():
        with pytest.raises(DatasetError, match="unfinished"):
            load_transactions(folder)
    assert bool(list(tmp_path.iterdir())) == (sent == signal.SIGKILL)
    # The next run clears what the killed one left.
    assert generate(*SMALL, "--out", str(out)).returncode == 0
    assert [folder.name for folder in tmp_path.iterdir()] == ["dataset"]
