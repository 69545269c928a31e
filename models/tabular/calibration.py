"""From a ranking to probabilities: a logistic in the logit, so that ranks stay and no ties arise (Platt, 1999)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from model_release.exact_network import logistic_table
from numpy.typing import NDArray

from models.tabular.network import LOGIT_STEP, TABLE_SIZE


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = 1 / (1 + exp(-(slope * logit + intercept)))"""

    slope: float
    intercept: float

    def table(self) -> NDArray[np.float32]:
        """float32 [TABLE_SIZE] for the exact network."""
        return logistic_table(self.slope, self.intercept, LOGIT_STEP, TABLE_SIZE)

    def probabilities(self, logit: NDArray[np.float64]) -> NDArray[np.float32]:
        """float32 [n]: what the released module gives for these logits, to the bit."""
        return self.table()[np.rint(logit / LOGIT_STEP).astype(np.int64) + TABLE_SIZE // 2]


def fit_calibration(logit: NDArray[np.float64], happened: NDArray[np.bool_]) -> Calibration:
    """Maximum likelihood by Newton's method; targets drawn in by one count each, as Platt does, so that it exists.

    Raises ValueError where the logits do not rank what happened above others at all (the slope would not be positive).
    """
    positive, others = int(happened.sum()), int((~happened).sum())
    target = np.where(happened, (positive + 1) / (positive + 2), 1 / (others + 2))
    design = np.column_stack([logit, np.ones(len(logit))])
    solution = np.array([1.0, 0.0])
    for _ in range(100):
        probability = 1.0 / (1.0 + np.exp(-np.clip(design @ solution, -40, 40)))
        weight = probability * (1 - probability) + 1e-9
        step = np.linalg.solve(design.T @ (design * weight[:, None]), design.T @ (target - probability))
        # Far steps overshoot where the start is poor.
        solution = solution + step * min(1.0, 2.0 / float(np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    slope, intercept = (float(round(value, 9)) for value in solution)
    if not slope > 0:
        raise ValueError(f"calibration: slope is {slope}, must be positive: the network ranks upside down")
    return Calibration(slope, intercept)


def calibration_error(probability: NDArray[np.floating], happened: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error over bins of equal predicted mass.

    Equal counts would put nearly all bins where nothing happens, where the positive are one in a hundred.
    """
    order = np.argsort(probability, kind="stable")
    mass = np.cumsum(probability[order])
    bin_of = np.minimum((mass / mass[-1] * bins).astype(np.int64), bins - 1)
    error = 0.0
    for number in range(bins):
        rows = order[bin_of == number]
        if len(rows):
            error += abs(float(probability[rows].mean()) - float(happened[rows].mean())) * len(rows) / len(order)
    return error
