"""The finished day in numbers, and the promises it is measured by. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from batch_scorer.outcome import Report
from numpy.typing import NDArray

from trine_cli.demo.night import NightsSeen
from trine_cli.demo.outage import Outage
from trine_cli.demo.scenario import Scenario
from trine_cli.demo.tally import ANSWERED, MODEL, SOURCES, VERDICTS, Tally, quality

_SETTLES_S = 1.0
"""Requests sent just before it stops are still under way when it comes."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What the demo says it shows, what it saw, and whether that holds."""

    what: str
    found: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Seconds:
    """The day by second of sending, float64[seconds] each; NaN where nothing was sent. Latencies and lags in ms."""

    p50: NDArray[np.float64]
    p99: NDArray[np.float64]
    by_source: dict[str, NDArray[np.float64]]
    by_verdict: dict[str, NDArray[np.float64]]
    lag_p50: NDArray[np.float64]
    lag_p99: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Everything the report shows. `fraud` bool[n]: the truth; `decisions`: their replay from the archive.

    `timings`: seconds by step; `reports`: fraud reports that came in meanwhile.
    """

    scenario: Scenario
    release: str
    tally: Tally
    fraud: NDArray[np.bool_]
    outage: Outage
    decisions: Report
    decisions_s: float
    timings: dict[str, float]
    reports: int
    nights: NightsSeen

    @property
    def total(self) -> int:
        return len(self.fraud)

    @property
    def sent_for_s(self) -> float:
        return float(np.nanmax(self.tally.sent_s))

    @property
    def answered(self) -> NDArray[np.bool_]:
        return np.asarray(self.tally.state == ANSWERED)

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Requests sent before TorchServe was stopped or after the gateway used it again."""
        sent = self.tally.sent_s
        return np.asarray((sent < self.outage.stopped_s - _SETTLES_S) | (sent > self.outage.back_s))

    def latency_ms(self, percent: float, chosen: NDArray[np.bool_] | None = None) -> float:
        """A percentile of what callers waited; of all answers, or of some requests."""
        found = self.tally.latency_ms[self.answered if chosen is None else self.answered & chosen]
        return float(np.percentile(found, percent)) if len(found) else float("nan")

    def quality(self, least: int) -> tuple[float | None, float | None]:
        """Precision and recall of verdicts of `least` or worse against the truth."""
        return quality(self.tally.verdict, self.fraud, least)

    def count_by(self, names: dict[int, str], numbers: NDArray[np.int8]) -> dict[str, int]:
        return {name: int((numbers[self.answered] == number).sum()) for number, name in names.items()}

    @property
    def by_source(self) -> dict[str, int]:
        return {n: c for n, c in self.count_by(dict(SOURCES.items()), self.tally.source).items() if c}

    @property
    def by_verdict(self) -> dict[str, int]:
        return self.count_by(dict(VERDICTS.items()), self.tally.verdict)

    @property
    def promises(self) -> list[Promise]:
        settled, late = int(self.answered.sum()), self.total - int(self.answered.sum())
        outside = self.outside
        by_model = self.tally.source[outside] == MODEL
        share = float(by_model.mean()) if len(by_model) else 0.0
        away = self.total - int(outside.sum())
        deadline_ms = self.scenario.deadline_s * 1_000
        errors = "; ".join(f"{n} x {what}" for what, n in self.tally.errors.items())
        replayed, killed = self.decisions, self.nights.killed
        return [
            Promise(
                f"Every request is answered within its {deadline_ms:.0f} ms, also while TorchServe is away",
                f"{settled:,} of {self.total:,} answered in time" + (f" ({errors})" if late else ""),
                late == 0,
            ),
            Promise(
                f"TorchServe is stopped for {self.scenario.outage_s:.0f} s, and used again",
                f"stopped at {self.outage.stopped_s:.1f} s, went on"
                f" {self.outage.resumed_s - self.outage.stopped_s:.1f} s later,"
                f" in use {self.outage.back_s - self.outage.resumed_s:.1f} s after that;"
                f" {away:,} requests came meanwhile",
                self.outage.back_s == self.outage.back_s,
            ),
            Promise(
                f"Outside of that at least {self.scenario.model_share:.0%} are answered by the model",
                f"{share:.2%} of {int(outside.sum()):,}",
                share >= self.scenario.model_share,
            ),
            Promise(
                "Every decision of the day is computed again from the archive: 0 different",
                f"{replayed.decisions:,} decisions on {self.total:,} transactions replayed in {self.decisions_s:.1f} s,"
                f" {replayed.different:,} different",
                replayed.different == 0 and replayed.decisions >= self.total,
            ),
            Promise(
                "The night's three jobs are published, each by one pointer, and can be read",
                "; ".join(f"{p.job} {p.rows:,} rows in {p.seconds:.0f} s" for p in self.nights.published),
                all(p.prediction for p in self.nights.published),
            ),
            Promise(
                "A run that is killed changes nothing; the next one publishes; a rollback brings the old one back",
                f"killed in its stage {killed.stage}; read before {killed.before}, after {killed.after},"
                f" then {killed.again}, rolled back to {killed.rolled_back}",
                killed.stood,
            ),
        ]

    def seconds(self) -> Seconds:
        """The day by second of sending."""
        second = np.floor(np.nan_to_num(self.tally.sent_s)).astype(np.int64)
        count = int(second.max()) + 1
        ok = self.answered
        latency = self.tally.latency_ms

        def percentile(values: NDArray[np.float64], percent: float) -> NDArray[np.float64]:
            return np.array([_percentile(values[ok & (second == s)], percent) for s in range(count)])

        def counts(numbers: NDArray[np.int8], names: dict[int, str]) -> dict[str, NDArray[np.float64]]:
            found = {
                name: np.bincount(second[ok & (numbers == number)], minlength=count).astype(np.float64)
                for number, name in names.items()
            }
            return {name: values for name, values in found.items() if values.any()}

        lag = self.tally.lag_ms.astype(np.float64)
        return Seconds(
            p50=percentile(latency, 50),
            p99=percentile(latency, 99),
            by_source=counts(self.tally.source, dict(SOURCES.items())),
            by_verdict=counts(self.tally.verdict, dict(VERDICTS.items())),
            lag_p50=percentile(lag, 50),
            lag_p99=percentile(lag, 99),
        )


def _percentile(values: NDArray[np.float64], percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")
