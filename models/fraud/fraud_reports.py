"""When frauds become known: reports with delays, late ones, reports in error and withdrawals.

The handbook has labels only; the delays here are this project's, declared in `GeneratorParameters`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.fraud.generator_parameters import GeneratorParameters
from models.fraud.population import SECONDS_PER_DAY, stream


@dataclass(frozen=True, slots=True)
class Reports:
    """m reports in order of (second, row): row int64[m] of the transaction, second int64[m] since the first day's
    midnight (after the transaction's own), fraud bool[m] (False: withdrawn), scenario int32[m] (0 where not fraud).
    """

    row: NDArray[np.int64]
    second: NDArray[np.int64]
    fraud: NDArray[np.bool_]
    scenario: NDArray[np.int32]


def make_reports(second: NDArray[np.int64], scenario: NDArray[np.int32], parameters: GeneratorParameters) -> Reports:
    """Reports on transactions at second[n] with scenario[n] (0 = genuine)."""
    random = stream(parameters.seed, "reports")
    frauds = np.flatnonzero(scenario)
    genuine = np.flatnonzero(scenario == 0)
    in_error = min(len(genuine), round(len(frauds) * parameters.false_report_share))
    mistaken = np.sort(random.choice(genuine, in_error, replace=False)) if in_error else genuine[:0]

    reported = np.concatenate([frauds, mistaken])
    reported_at = second[reported] + _report_delays(random, len(reported), parameters)
    withdrawn = np.concatenate(
        [random.random(len(frauds)) < parameters.withdrawn_share, np.ones(len(mistaken), dtype=np.bool_)]
    )
    after = np.ceil(random.uniform(0, parameters.withdrawal_days * SECONDS_PER_DAY, int(withdrawn.sum())))
    withdrawn_at = reported_at[withdrawn] + np.maximum(after.astype(np.int64), 1)

    row = np.concatenate([reported, reported[withdrawn]])
    at = np.concatenate([reported_at, withdrawn_at])
    fraud = np.arange(len(row)) < len(reported)
    order = np.lexsort((row, at))
    said = np.where(fraud, scenario[row], 0).astype(np.int32)
    return Reports(row[order], at[order], fraud[order], said[order])


def _report_delays(random: np.random.Generator, count: int, parameters: GeneratorParameters) -> NDArray[np.int64]:
    """Seconds from transaction to report, int64[count], at least 1."""
    mean, usual = parameters.report_mean_days, parameters.usual_report_days
    # Inverse of the exponential distribution function, cut at `usual`.
    below_cut = -np.expm1(-usual / mean)
    delay = -mean * np.log1p(-random.random(count) * below_cut)
    late = random.random(count) < parameters.late_share
    delay = np.where(late, random.uniform(usual, parameters.late_report_days, count), delay)
    seconds = np.ceil(delay * SECONDS_PER_DAY)
    # Rounding up must not carry a usual report over the edge, nor a late one back to it.
    edge = np.floor(usual * SECONDS_PER_DAY)
    seconds = np.where(late, np.maximum(seconds, edge + 1), np.minimum(seconds, edge))
    return np.asarray(np.maximum(seconds, 1), dtype=np.int64)
