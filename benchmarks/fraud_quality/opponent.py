"""The opponent: XGBoost, tuned on the validation days within a budget of CPU time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xgboost  # type: ignore[import-not-found, unused-ignore]
from numpy.typing import NDArray

from models.fraud.features import QUOTIENTS
from models.fraud.history import LabelledHistory
from models.fraud.protocol import Fold, test_rows, train_rows
from models.tabular.encoding import columns_of
from models.tabular.ranking import average_precision

THREADS = 2
LEAST_TRIALS = 18
"""As many as the handbook's own grid has, even where the budget is used up before."""

Parameters = dict[str, float | int]


def candidates(seed: int) -> list[Parameters]:
    """The handbook's grid and a finer one around it, in random order."""
    handbook = [
        {"max_depth": depth, "n_estimators": trees, "learning_rate": rate}
        for depth, trees, rate in itertools.product((3, 6, 9), (25, 50, 100), (0.1, 0.3))
    ]
    finer = [
        {
            "max_depth": depth,
            "n_estimators": trees,
            "learning_rate": rate,
            "min_child_weight": weight,
            "subsample": 0.8,
            "colsample_bytree": 0.8,
        }
        for depth, trees, rate, weight in itertools.product((3, 4, 6), (100, 200, 400), (0.03, 0.05, 0.1), (1, 5))
    ]
    grid: list[Parameters] = [*handbook, *finer]
    return [grid[i] for i in np.random.default_rng(seed).permutation(len(grid))]


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """Scores float [m] of the fold's test rows; what was chosen; how many were tried; CPU seconds used."""

    score: NDArray[np.float32]
    parameters: Parameters
    trials: int
    cpu_s: float


def tune(history: LabelledHistory, fold: Fold, budget_s: float, quotients: bool, seed: int) -> Tuned:
    """Tries candidates until `budget_s` of CPU time are used, and LEAST_TRIALS at least; the one with the greatest
    average precision on the validation fold is fitted on the fold's training days.

    `quotients`: XGBoost also gets the quotients that the network makes for itself.
    """
    vectors = (
        columns_of(history.features, history.vectors, QUOTIENTS).astype(np.float32) if quotients else history.vectors
    )
    earlier = fold.validation()
    train, held_out = train_rows(history, earlier), test_rows(history, earlier)
    then, now = history.fraud_as_known(earlier.trained_at_us), history.fraud_as_known(fold.trained_at_us)
    began = time.process_time()
    tried: list[tuple[float, Parameters]] = []
    for parameters in candidates(seed):
        if len(tried) >= LEAST_TRIALS and time.process_time() - began >= budget_s:
            break
        score = _fit(vectors[train], then[train], parameters, seed)(vectors[held_out])
        tried.append((average_precision(now[held_out], score), parameters))
    best = max(tried, key=lambda one: one[0])[1]
    rows = train_rows(history, fold)
    score = _fit(vectors[rows], now[rows], best, seed)(vectors[test_rows(history, fold)])
    return Tuned(score, best, len(tried), time.process_time() - began)


def _fit(
    vectors: NDArray[np.float32], fraud: NDArray[np.bool_], parameters: Parameters, seed: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    model = xgboost.XGBClassifier(tree_method="hist", n_jobs=THREADS, random_state=seed, **parameters)
    model.fit(vectors, fraud)
    return lambda rows: np.asarray(model.predict_proba(rows)[:, 1], dtype=np.float32)
