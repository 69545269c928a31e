"""Golden rows of a tabular model: what its module must score the same wherever it is loaded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN_ROWS = 512
_POSITIVE = 128


def golden_rows(rows: NDArray[np.float32], positive: NDArray[np.bool_], seed: int) -> NDArray[np.float32]:
    """float32 [GOLDEN_ROWS, F]: positive rows, others, and values at and beyond the ends of every feature."""
    rng = np.random.default_rng(seed)
    width = rows.shape[1]
    ends = np.stack([np.zeros(width), rows.min(axis=0), rows.max(axis=0), np.full(width, 1e9), np.full(width, -1.0)])
    chosen = rng.choice(np.flatnonzero(positive), _POSITIVE)
    others = rng.choice(np.flatnonzero(~positive), GOLDEN_ROWS - len(chosen) - len(ends))
    return np.concatenate([ends.astype(np.float32), rows[chosen], rows[others]])
