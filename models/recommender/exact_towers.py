"""Fitted towers on their binary grids: what a release holds, and what evaluation measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from model_release.retrieval import Ranking, top_unseen
from model_release.user_tower import VALUE_BITS, VECTOR_BITS, UserTower
from numpy.typing import NDArray

from models.recommender.histories import Histories
from models.recommender.training import Towers

ROOM = 4.0
"""How many times the greatest component of a trained user's embedding fits on the grid; beyond it is clamped."""


@dataclass(frozen=True, slots=True, eq=False)
class ExactTowers:
    """The user tower, and item_embeddings float32 [I, D]: the targets, then the bias."""

    tower: UserTower
    item_embeddings: NDArray[np.float32]

    def embed(self, histories: Histories) -> NDArray[np.float32]:
        """Users' embeddings float32 [n, D]."""
        with torch.inference_mode():
            found: NDArray[np.float32] = self.tower(
                torch.from_numpy(histories.items),
                torch.from_numpy(histories.weights.astype(np.float64)),
                torch.from_numpy(histories.starts),
            ).numpy()
        return found

    def rank(self, histories: Histories, top: int) -> Ranking:
        """The best items that are not in the histories."""
        return top_unseen(self.embed(histories), self.item_embeddings, histories.items, histories.starts, top)


def exact(towers: Towers, histories: Histories) -> ExactTowers:
    """The towers with all numbers rounded; the users' grid is as fine as the embeddings of `histories` allow."""
    vector_bits = VECTOR_BITS - _bits(towers.vectors)
    vectors = np.rint(towers.vectors.astype(np.float64) * 2.0**vector_bits)
    embeddings = np.concatenate([towers.targets, towers.bias[:, None]], axis=1).astype(np.float64)
    step = 2.0 ** (_bits(embeddings) - VALUE_BITS)
    items = (np.rint(embeddings / step) * step).astype(np.float32)
    trial = ExactTowers(UserTower(vectors, -vector_bits, 0), items)
    coarse = np.abs(trial.embed(histories)[:, :-1]).max(initial=0.0)
    step_bits = min(VALUE_BITS - _bits(np.array([ROOM * (coarse + 1.0)])), VALUE_BITS)
    return ExactTowers(UserTower(vectors, step_bits - vector_bits, step_bits), items)


def _bits(values: NDArray[np.floating]) -> int:
    """The least b with all values within 2^b."""
    greatest = float(np.abs(values).max(initial=0.0))
    return math.ceil(math.log2(greatest)) if greatest > 0 else 0
