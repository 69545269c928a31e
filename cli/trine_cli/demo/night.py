"""The nights of the demo: three batch jobs before the day; after it a run that is killed, one that is not, a rollback.

Everything goes through the command line, in processes of its own, as a scheduler would start it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine_cli.demo.scenario import Scenario
from trine_cli.errors import Unavailable

CARD_RISK, CHURN, RECOMMENDATIONS = "card-risk", "churn", "recommendations"
_TIMEOUT_S = 600.0
_KILLED_IN = "score"
_LEASE_S = "3"
"""A killed run's lease; in production half a minute."""

Values = dict[str, Any]
"""What a command printed as JSON."""


@dataclass(frozen=True, slots=True)
class Published:
    """A run, and one prediction that is read from it."""

    job: str
    run: str
    rows: int
    seconds: float
    key: str
    prediction: Values


@dataclass(frozen=True, slots=True)
class Killed:
    """The next night: runs that readers were given before the kill, after it, after a second start, after rollback."""

    stage: str
    before: str
    after: str
    again: str
    rolled_back: str

    @property
    def stood(self) -> bool:
        """Readers had the old run until the new one was whole, and have it again after the rollback."""
        return self.before == self.after != self.again and self.rolled_back == self.before


@dataclass(frozen=True, slots=True)
class NightsSeen:
    """What the demo's two nights brought."""

    published: list[Published]
    killed: Killed


class Nights:
    """Batch jobs of a scenario on the Redis at `redis_url`. Card payments and fraud reports are the demo's own;
    customers who leave and a shop's interactions are made beside them.
    """

    def __init__(self, scenario: Scenario, redis_url: str) -> None:
        self._redis_url, self._cutoff = redis_url, scenario.day
        folder = scenario.folder / "night"
        self._bank, self._shop, self._releases = folder / "bank", folder / "shop", folder / "releases"
        #: The warehouse of each job, and where its model's releases are.
        self._places = {
            CARD_RISK: (scenario.dataset, scenario.releases),
            CHURN: (self._bank, self._releases),
            RECOMMENDATIONS: (self._shop, self._releases),
        }

    def prepare(self) -> bool:
        """Data and models of churn and recommendations; whether they were made now."""
        last, made = self._cutoff.isoformat(), not self._done.exists()
        days = 157
        start = (self._cutoff - dt.timedelta(days=days - 1)).isoformat()
        _trine("data", "generate", "--out", self._bank, "--start", start, "--days", days, "--customers", 2_000,
               "--terminals", 4_000, "--churn-rate", 0.1)  # fmt: skip
        _trine("data", "generate", "--kind", "interactions", "--out", self._shop, "--start", start, "--days", days)
        if made:
            _trine("train", "churn", "--transactions", self._bank, "--cutoff", last, "--releases", self._releases)
            _trine("train", "recommender", "--interactions", self._shop, "--until", last, "--no-tune",
                   "--releases", self._releases)  # fmt: skip
            self._done.touch()
        return made

    def run_all(self) -> list[Published]:
        """Tonight's three jobs, and a read of each. Runs of an earlier demo are removed: its Redis is gone."""
        for warehouse, _ in self._places.values():
            shutil.rmtree(warehouse / "runs", ignore_errors=True)
        keys = {CARD_RISK: "customer:42", CHURN: "42", RECOMMENDATIONS: "42"}
        found = []
        for job, key in keys.items():
            done = _trine(*self._run(job, self._cutoff))
            seconds = sum(done["seconds"].values())
            found.append(Published(job, done["run"], done["rows"], seconds, key, self.read(job, key)[1]))
        return found

    def next_night(self) -> Killed:
        """The churn run of the next night is killed half-way and started again; then its result is rolled back."""
        tomorrow = self._cutoff + dt.timedelta(days=1)
        before, _ = self.read(CHURN, "42")
        _kill_in(_KILLED_IN, self._run(CHURN, tomorrow))
        after, _ = self.read(CHURN, "42")
        _trine(*self._run(CHURN, tomorrow))
        again, _ = self.read(CHURN, "42")
        _trine("batch", "rollback", CHURN, "--redis-url", self._redis_url)
        rolled_back, _ = self.read(CHURN, "42")
        _trine("batch", "prune", "--redis-url", self._redis_url, "--warehouse", self._bank)
        return Killed(_KILLED_IN, before, after, again, rolled_back)

    def read(self, job: str, key: str) -> tuple[str, Values]:
        """The run that is served, and its prediction for `key`."""
        found = _trine("batch", "read", job, key, "--redis-url", self._redis_url)
        return found["run"], found["predictions"][key] or {}

    def _run(self, job: str, cutoff: dt.date) -> list[object]:
        warehouse, releases = self._places[job]
        return ["batch", "run", job, "--cutoff", cutoff.isoformat(), "--warehouse", warehouse, "--releases", releases,
                "--redis-url", self._redis_url]  # fmt: skip

    @property
    def _done(self) -> Path:
        return self._releases.parent / f"trained-{self._cutoff.isoformat()}"


def prediction_text(values: Values) -> str:
    """A published prediction in a few words."""
    words = []
    for name, value in values.items():
        if isinstance(value, float):
            words.append(f"{name} {value:.4f}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            words.append(f"{name} {', '.join(str(v['item']) for v in value[:5])} …")
        elif isinstance(value, list):
            words.append(f"{name} of {len(value)} numbers")
        else:
            words.append(f"{name} {value}")
    return "; ".join(words)


def _trine(*arguments: object) -> Values:
    """What `trine ... --json` prints. Raises Unavailable with its last lines where it fails."""
    done = subprocess.run(
        _command(arguments), env=_environment(), capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
    )
    if done.returncode != 0:
        raise Unavailable(f"trine {' '.join(map(str, arguments[:3]))}: {done.stderr.strip()[-1_500:]}")
    values: Values = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    return values


def _kill_in(stage: str, arguments: list[object]) -> None:
    """Start a run and kill all of its processes (SIGKILL) as soon as `stage` has begun."""
    process = subprocess.Popen(
        _command(arguments), env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if stage in line.split() and "began" in line:
                return
        raise Unavailable(f"the run ended before its stage {stage}: {''.join(said)[-1_500:]}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def _command(arguments: tuple[object, ...] | list[object]) -> list[str]:
    return [sys.executable, "-m", "trine_cli.main", *map(str, arguments), "--json"]


def _environment() -> dict[str, str]:
    # A JVM that lives for seconds has no use for its optimising compiler.
    java = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    return {"JAVA_TOOL_OPTIONS": java, **os.environ, "TRINE_BATCH_LEASE_S": _LEASE_S, "COLUMNS": "200"}
