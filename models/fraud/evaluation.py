"""Measuring a release on days of a dataset, by the published protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from model_release import Release, Thresholds, scoring_module
from model_release.policy import Verdict, verdicts
from numpy.typing import NDArray

from models.fraud.history import LabelledHistory, load_history
from models.fraud.metrics import Metrics
from models.fraud.protocol import Fold, measure_rows, test_rows
from models.tabular.calibration import calibration_error

CHUNK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a release did on some days; shares 0..1, counts of transactions."""

    metrics: Metrics
    calibration_error: float
    transactions: int
    frauds: int
    review: int
    deny: int
    deny_precision: float | None
    caught: float

    def summary(self) -> dict[str, float | int | None]:
        """For people, JSON and manifests."""
        return {
            **self.metrics.rounded(),
            "calibration_error": round(self.calibration_error, 6),
            "transactions": self.transactions,
            "frauds": self.frauds,
            "review": self.review,
            "deny": self.deny,
            "deny_precision": None if self.deny_precision is None else round(self.deny_precision, 6),
            "caught": round(self.caught, 6),
        }


def evaluate_release(
    release: Release, dataset: Path | str, from_day: int, to_day: int, train_days: int = 7, delay_days: int = 7
) -> Evaluation:
    """Measures `release` on from_day <= day < to_day (days since 1970).

    Customers are left out as the protocol does: those with a fraud since the first training day of a model that would
    have been trained for these days, as far as reported.

    Raises:
        feature_store.dataset.DatasetError: the dataset cannot be read.
        TooLittleData: days without transactions, or without both frauds and others.
    """
    fold = Fold(from_day, train_days, delay_days, to_day - from_day)
    history = load_history(dataset, release.plan, fold.train_start, fold.test_end)
    rows = test_rows(history, fold)
    scores = score_rows(scoring_module.load(release.module_path), history.vectors[rows])
    return evaluate(history, rows, scores, history.fraud, release.manifest.thresholds)


def score_rows(module: scoring_module.ScoringModule, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [n] for any n, in pieces that stay in the cache."""
    parts = [module(rows[start : start + CHUNK_ROWS]) for start in range(0, len(rows), CHUNK_ROWS)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def evaluate(
    history: LabelledHistory,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    fraud: NDArray[np.bool_],
    thresholds: Thresholds,
) -> Evaluation:
    """Everything of `Evaluation` for rows int64 [m] with scores float32 [m], by labels bool [n]."""
    metrics = measure_rows(history, rows, scores, fraud)
    found = verdicts(scores, thresholds)
    truth = fraud[rows]
    denied = found == Verdict.DENY
    stopped = found != Verdict.APPROVE
    return Evaluation(
        metrics=metrics,
        calibration_error=calibration_error(scores, truth),
        transactions=len(rows),
        frauds=int(truth.sum()),
        review=int((found == Verdict.REVIEW).sum()),
        deny=int(denied.sum()),
        deny_precision=float(truth[denied].mean()) if denied.any() else None,
        caught=float(stopped[truth].mean()),
    )
