"""The best unseen items of every user by dot product, exactly. NumPy only; memory is bounded whatever the users.

Embeddings are those of a recommender's release (`model_release.user_tower`): their dot products are exact in float64,
so ranks are the same for any batch and machine. Equal scores: the item with the lower index comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SCORES_AT_ONCE = 4_000_000
NOTHING = -1


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """items int64 [n, top], best first, NOTHING where fewer are unseen; scores float32 [n, top], -inf there."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]


def top_unseen(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    seen: NDArray[np.int64],
    starts: NDArray[np.int64],
    top: int,
) -> Ranking:
    """Ranks items float32 [I, D] for users float32 [n, D].

    User k has seen seen[starts[k] : starts[k + 1]], the last one to the end. Scores are rounded to float32 after
    ranking. Raises ValueError where `top` is less than 1.
    """
    if top < 1:
        raise ValueError(f"top: is {top}, must be 1 or more")
    ends = np.append(starts[1:], len(seen))
    wide = np.ascontiguousarray(items.T, dtype=np.float64)
    ranking = Ranking(
        np.full((len(users), top), NOTHING, dtype=np.int64), np.full((len(users), top), -np.inf, dtype=np.float32)
    )
    block = max(1, _SCORES_AT_ONCE // max(len(items), 1))
    for begin in range(0, len(users), block):
        end = min(begin + block, len(users))
        scores = users[begin:end].astype(np.float64) @ wide
        counts = ends[begin:end] - starts[begin:end]
        scores[np.repeat(np.arange(end - begin), counts), seen[starts[begin] : ends[end - 1]]] = -np.inf
        _rank(scores, ranking.items[begin:end], ranking.scores[begin:end])
    return ranking


def _rank(scores: NDArray[np.float64], items_out: NDArray[np.int64], scores_out: NDArray[np.float32]) -> None:
    rows, width = scores.shape
    top = min(items_out.shape[1], width)
    found = np.sort(np.argpartition(-scores, top - 1, axis=1)[:, :top], axis=1)
    values = np.take_along_axis(scores, found, axis=1)
    least = values.min(axis=1, keepdims=True)
    # Of items that tie for the last places argpartition took any; those rows are done with care.
    tied = np.flatnonzero((scores == least).sum(axis=1) > (values == least).sum(axis=1))
    for row in tied.tolist():
        found[row] = np.sort(np.argsort(-scores[row], kind="stable")[:top])
        values[row] = scores[row, found[row]]
    order = np.argsort(-values, axis=1, kind="stable")
    found, values = np.take_along_axis(found, order, axis=1), np.take_along_axis(values, order, axis=1)
    items_out[:rows, :top] = np.where(np.isneginf(values), NOTHING, found)
    scores_out[:rows, :top] = values
