"""What the demo shows: which data, which day, how fast, and what goes wrong half-way."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from feature_store.dataset import DAY_US

from models.fraud.generator_parameters import GeneratorParameters

RATE = 200.0
"""Requests a second."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The handbook's population; the demo's day is the last of its `days`, and all before it is history.

    A release needs four weeks for training and validation, and the longest window reaches 37 days before those.
    `rate`: requests a second. `outage_s`: how long TorchServe is away. `warm_up`: requests before the day, for what
    compiles while it runs. `shards`, `env`: how the stack is set up.
    """

    folder: Path
    customers: int = 5_000
    terminals: int = 10_000
    days: int = 67
    start: dt.date = dt.date(2018, 4, 1)
    seed: int = 0
    rate: float = RATE
    deadline_s: float = 0.1
    outage_s: float = 5.0
    model_share: float = 0.99
    warm_up: int = 600
    shards: int = 16
    #: The archive's files are complete soon after the day ends.
    env: Mapping[str, str] = field(default_factory=lambda: {"TRINE_WORKER_ARCHIVE_AGE_S": "5"})

    @property
    def parameters(self) -> GeneratorParameters:
        return GeneratorParameters(
            customers=self.customers, terminals=self.terminals, days=self.days, start=self.start, seed=self.seed
        )

    @property
    def day(self) -> dt.date:
        """The day that is replayed."""
        return self.start + dt.timedelta(days=self.days - 1)

    @property
    def day_us(self) -> int:
        """Its first microsecond: the cut between history and stream."""
        return (self.day - dt.date(1970, 1, 1)).days * DAY_US

    @property
    def dataset(self) -> Path:
        return self.folder / "data"

    @property
    def releases(self) -> Path:
        return self.folder / "releases"

    @property
    def stack(self) -> Path:
        """Data and logs of the running stack; made anew by every run."""
        return self.folder / "stack"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"
