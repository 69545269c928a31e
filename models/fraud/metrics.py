"""Ranking metrics of the published protocol, as pure functions over arrays.

Source: Le Borgne et al., "Reproducible Machine Learning for Credit Card Fraud Detection", chapter 4.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from models.tabular.ranking import auc_roc, average_precision


@dataclass(frozen=True, slots=True)
class Metrics:
    """What the protocol reports; all 0..1, greater is better."""

    auc_roc: float
    average_precision: float
    card_precision_100: float

    def rounded(self) -> dict[str, float]:
        """For people and manifests: six digits."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def card_precision(
    day: NDArray[np.int64],
    card: NDArray[np.int64],
    fraud: NDArray[np.bool_],
    score: NDArray[np.floating],
    top: int = 100,
) -> float:
    """Mean over days of: of the `top` cards with the greatest score that day, the share that was compromised.

    A card's score is that of its highest transaction of the day. A compromised card that was found is not looked at
    again on later days. Ties go to the lower card number; a day with fewer than `top` cards still divides by `top`.
    """
    found: set[int] = set()
    precisions = []
    for today in np.unique(day):
        rows = np.flatnonzero(day == today)
        cards, index = np.unique(card[rows], return_inverse=True)
        best = np.full(len(cards), -np.inf)
        np.maximum.at(best, index, score[rows])
        compromised = np.zeros(len(cards), dtype=np.bool_)
        np.logical_or.at(compromised, index, fraud[rows])
        open_cards = np.flatnonzero(~np.isin(cards, list(found)))
        alerted = open_cards[np.argsort(-best[open_cards], kind="stable")[:top]]
        hits = alerted[compromised[alerted]]
        found.update(cards[hits].tolist())
        precisions.append(len(hits) / top)
    return float(np.mean(precisions))


def measure(
    day: NDArray[np.int64], card: NDArray[np.int64], fraud: NDArray[np.bool_], score: NDArray[np.floating]
) -> Metrics:
    """All three over the same rows. ValueError where a class is missing."""
    return Metrics(auc_roc(fraud, score), average_precision(fraud, score), card_precision(day, card, fraud, score))
