"""Softened labels: what boosted trees, fitted on the same rows, think of each training row.

A network that learns these probabilities instead of the bare labels generalises better than one that learns the
labels, and better than its teacher: the labels of a single week are few, and many positive rows look like any other
(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015). The teacher sees training rows and their labels
only, as the network does, and is not part of the release.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

TEACHERS = 3


def soft_labels(
    columns: NDArray[np.float64],
    positive: NDArray[np.bool_],
    seed: int,
    advance: Callable[[float], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Probabilities of being positive, float32 [n], for the rows that the teachers were fitted on: mean of TEACHERS.

    columns float64 [n, C]; positive bool [n] with both kinds. `advance` gets shares that add up to 1. Deterministic by
    seed, whatever the number of cores.
    """
    total = np.zeros(len(columns))
    # One thread: the order of sums, and so the result, must not depend on the machine.
    with threadpool_limits(limits=1):
        for number in range(TEACHERS):
            teacher = HistGradientBoostingClassifier(
                learning_rate=0.05,
                max_iter=200,
                max_leaf_nodes=8,
                min_samples_leaf=10,
                l2_regularization=1.0,
                max_features=0.5,
                early_stopping=False,
                random_state=seed * TEACHERS + number,
            )
            total += teacher.fit(columns, positive).predict_proba(columns)[:, 1]
            advance(1.0 / TEACHERS)
    return (total / TEACHERS).astype(np.float32)
