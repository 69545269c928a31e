"""How well scores rank what happened above what did not, as pure functions over arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def auc_roc(happened: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Probability that a positive row outranks another; ties count half. ValueError where a class is missing."""
    positive = int(happened.sum())
    others = len(happened) - positive
    if not positive or not others:
        raise ValueError(f"AUC needs both classes, found {positive} positive rows and {others} others")
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2
    return float((middle_rank[group][happened].sum() - positive * (positive + 1) / 2) / (positive * others))


def average_precision(happened: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Sum over distinct scores, falling, of precision times the gain in recall. ValueError where none is positive."""
    if not happened.any():
        raise ValueError("average precision needs at least one positive row, found none")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(happened[order])
    last_of_tie = np.append(np.diff(score[order]) != 0, True)
    hits, ranks = hits[last_of_tie], np.flatnonzero(last_of_tie) + 1
    return float((np.diff(hits, prepend=0) * hits / ranks).sum() / hits[-1])
