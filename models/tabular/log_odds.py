"""Logistic regression whose weights are on the grid that `model_release.odds` multiplies by, none of them negative."""

from __future__ import annotations

import math

import numpy as np
from model_release.manifest import MAX_SIXTEENTHS
from numpy.typing import NDArray

GRID = 16
_RIDGE = 1e-6


def logit(probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """log(p / (1 - p)) of probabilities above 0 and below 1."""
    wide = probability.astype(np.float64)
    return np.log(wide) - np.log1p(-wide)


def fit_log_odds(columns: NDArray[np.float64], happened: NDArray[np.bool_]) -> tuple[tuple[int, ...], float]:
    """Maximum likelihood weights of logits float64 [n, k], in sixteenths, and the factor exp(intercept).

    A weight that would be negative is 0 (more evidence must not mean less risk) and the others are fitted anew. After
    rounding the intercept is fitted once more, so that as much is predicted as happened (drawn in by half a count each
    way, so that it exists where nothing or everything happened).
    """
    return on_grid(fit_weights(columns, happened), columns, happened)


def fit_weights(columns: NDArray[np.float64], happened: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The weights float64 [k] before they are rounded."""
    kept = np.arange(columns.shape[1])
    weights = np.zeros(columns.shape[1])
    while len(kept):
        found = _newton(columns[:, kept], happened)[:-1]
        weights[:] = 0.0
        weights[kept] = found
        if (found > 0).all():
            break
        kept = kept[found > 0]
    return weights


def on_grid(
    weights: NDArray[np.float64], columns: NDArray[np.float64], happened: NDArray[np.bool_]
) -> tuple[tuple[int, ...], float]:
    """Weights rounded to sixteenths, and the factor that goes with them."""
    sixteenths = tuple(int(min(max(round(w * GRID), 0), MAX_SIXTEENTHS)) for w in weights)
    offset = columns @ (np.array(sixteenths) / GRID)
    return sixteenths, float(np.clip(round_to(math.exp(_intercept(offset, happened)), 9), 1e-9, 1e9))


def round_to(value: float, digits: int) -> float:
    """To so many significant digits: what a machine's last bits must not decide."""
    return float(f"{value:.{digits}g}")


def _newton(columns: NDArray[np.float64], happened: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights and, last, the intercept."""
    design = np.column_stack([columns, np.ones(len(columns))])
    share = (happened.sum() + 0.5) / (len(happened) + 1)
    solution = np.append(np.zeros(columns.shape[1]), math.log(share / (1 - share)))
    for _ in range(100):
        chance = _logistic(design @ solution)
        weight = chance * (1 - chance) + 1e-12
        slope = design.T @ (happened - chance) - _RIDGE * solution
        curve = design.T @ (design * weight[:, None]) + _RIDGE * np.eye(len(solution))
        step = np.linalg.solve(curve, slope)
        # Far steps overshoot where the start is poor.
        solution = solution + step * min(1.0, 1.0 / float(np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return solution


def _intercept(offset: NDArray[np.float64], happened: NDArray[np.bool_]) -> float:
    """The intercept at which the sum of probabilities is the number that happened."""
    wanted = min(max(float(happened.sum()), 0.5), len(happened) - 0.5)
    low, high = -40.0 - float(offset.max()), 40.0 - float(offset.min())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(_logistic(offset + middle).sum()) < wanted else (low, middle)
    return (low + high) / 2


def _logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(values, -700, 700)))
    return found
