"""The other sides: Feast's materialise, redis-benchmark's pipelined SET, the module called row by row."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from model_release import Release
from model_release.scoring_module import load
from trine_cli.local.redis_server import RedisServer

from benchmarks.batch.entities import CUTOFF_US, FIRST_DAY_US

FEAST = "feast[redis]==0.67.0"


def feast_rate(warehouse: Path, entities: int, redis: RedisServer, python: Path) -> float:
    """Rows a second of `FeatureStore.materialize`, its process's start not counted."""
    with redis.connect() as client:
        client.flushall()
    command = [
        str(python), str(Path(__file__).with_name("feast_side.py")), str(warehouse / "entities"), redis.address,
        str(FIRST_DAY_US / 1e6), str(CUTOFF_US / 1e6),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Feast: {done.stderr[-2_000:]}")
    with redis.connect() as client:
        if (written := client.dbsize()) < entities:
            raise RuntimeError(f"Feast wrote {written:,} of {entities:,} entities")
    return entities / float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def feast_python(folder: Path) -> Path:
    """An interpreter with Feast, made on first use: its dependencies do not go with ours."""
    python = folder / "feast" / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "-q", "--python", sys.executable, str(folder / "feast")], check=True)
        subprocess.run(["uv", "pip", "install", "-q", "--python", str(python), FEAST], check=True)
    return python


def floor_rate(entities: int, redis: RedisServer, value_bytes: int) -> float | None:
    """SETs a second by redis-benchmark, 64 in a pipeline, keys and values as large as a row's; None without it."""
    program = shutil.which("redis-benchmark")
    if program is None:
        return None
    with redis.connect() as client:
        client.flushall()
    command = [
        program, "-p", str(redis.port), "-t", "set", "-n", str(entities), "-r", str(entities), "-P", "64",
        "-d", str(value_bytes), "--csv",
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r'"SET","([\d.]+)"', text)
    if found is None:
        raise RuntimeError(f"redis-benchmark printed no rate: {text[-500:]}")
    return float(found[1])


def row_by_row_rate(release: Release, rows: int = 2_000) -> float:
    """Rows a second of the module called with one row at a time, in one thread as in an executor."""
    module = load(release.path)
    inputs = np.ascontiguousarray(np.resize(release.golden_inputs, (rows, release.golden_inputs.shape[1])))
    module(inputs[:1])
    began = time.perf_counter()
    for row in range(rows):
        module(inputs[row : row + 1])
    return rows / (time.perf_counter() - began)
