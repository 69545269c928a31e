"""Ranking metrics of the published protocol, as pure functions over arrays.

Source: Le Borgne et al., "Reproducible Machine Learning for Credit Card Fraud Detection", chapter 4.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Metrics:
    """What the protocol reports; all 0..1, greater is better."""

    auc_roc: float
    average_precision: float
    card_precision_100: float

    def rounded(self) -> dict[str, float]:
        """For people and manifests: six digits."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def auc_roc(fraud: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Probability that a fraud outranks a non-fraud; ties count half. ValueError where a class is missing."""
    frauds = int(fraud.sum())
    others = len(fraud) - frauds
    if not frauds or not others:
        raise ValueError(f"fraud: AUC needs both classes, found {frauds} frauds and {others} others")
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2
    return float((middle_rank[group][fraud].sum() - frauds * (frauds + 1) / 2) / (frauds * others))


def average_precision(fraud: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Sum over distinct scores, falling, of precision times the gain in recall. ValueError where there is no fraud."""
    if not fraud.any():
        raise ValueError("fraud: average precision needs at least one fraud, found none")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(fraud[order])
    last_of_tie = np.append(np.diff(score[order]) != 0, True)
    hits, ranks = hits[last_of_tie], np.flatnonzero(last_of_tie) + 1
    return float((np.diff(hits, prepend=0) * hits / ranks).sum() / hits[-1])


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
