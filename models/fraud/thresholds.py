"""Where review and deny begin, chosen on validation days by what a business can state."""

from __future__ import annotations

import numpy as np
from model_release.manifest import Thresholds
from numpy.typing import NDArray

MIN_DENIED = 20
"""A precision measured on fewer transactions says nothing."""


def choose_thresholds(
    day: NDArray[np.int64],
    card: NDArray[np.int64],
    fraud: NDArray[np.bool_],
    score: NDArray[np.float32],
    review_budget: int,
    deny_precision: float,
) -> tuple[Thresholds, str]:
    """Thresholds and a sentence that says how they came about.

    Review begins where, on average over the days, `review_budget` cards a day have a transaction at or above it.
    Deny begins at the lowest score, not below review, from which on at least the share `deny_precision` of
    transactions was fraud; at 1 where no score reaches that.

    Args: day, card int64 [n]; fraud bool [n]; score float32 [n], calibrated; review_budget >= 1; deny_precision 0..1.
    """
    if review_budget < 1 or not 0.0 < deny_precision <= 1.0:
        raise ValueError(
            f"review_budget must be at least 1, found {review_budget}; deny_precision above 0 up to 1, "
            f"found {deny_precision}"
        )
    pairs, index = np.unique(np.column_stack([day, card]), axis=0, return_inverse=True)
    best = np.zeros(len(pairs), dtype=np.float32)
    np.maximum.at(best, index.ravel(), score)
    days = len(np.unique(day))
    alerts = min(review_budget * days, len(best))
    review = float(np.sort(best)[-alerts])
    deny = max(review, _precise_from(fraud, score, deny_precision))
    reviewed = int((best >= review).sum()) / days
    basis = f"review: {reviewed:.0f} cards a day at or above it on the validation days (budget {review_budget}); "
    if deny < 1.0:
        denied = score >= deny
        basis += (
            f"deny: {fraud[denied].mean():.1%} of the {int(denied.sum())} transactions at or above it "
            f"were fraud (asked: {deny_precision:.0%})"
        )
    else:
        basis += f"deny: never, as no score reached a precision of {deny_precision:.0%} on {MIN_DENIED} transactions"
    return Thresholds(review=review, deny=deny), basis


def _precise_from(fraud: NDArray[np.bool_], score: NDArray[np.float32], precision: float) -> float:
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    share = np.cumsum(fraud[order]) / np.arange(1, len(order) + 1)
    whole = np.append(np.diff(ranked) != 0, True)
    good = np.flatnonzero(whole & (share >= precision) & (np.arange(1, len(order) + 1) >= MIN_DENIED))
    return float(ranked[good[-1]]) if len(good) else 1.0
