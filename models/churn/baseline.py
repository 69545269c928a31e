"""What a marketing department does without a model: a logistic regression on buckets of recency and frequency."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

from models.churn.history import Snapshot

BUCKETS = 8


class RecencyFrequency:
    """Buckets are quantiles of the rows it is fitted on; one-hot, with a little ridge."""

    def __init__(self, rows: Snapshot) -> None:
        shares = np.linspace(0, 1, BUCKETS + 1)[1:-1]
        self._edges = [np.unique(np.quantile(values, shares)) for values in (rows.recency, rows.frequency)]
        self._model = LogisticRegression(C=10.0, max_iter=1_000).fit(self._design(rows), rows.gone)

    def probability(self, rows: Snapshot) -> NDArray[np.float64]:
        """float64 [m]."""
        found: NDArray[np.float64] = self._model.predict_proba(self._design(rows))[:, 1]
        return found

    def _design(self, rows: Snapshot) -> NDArray[np.float64]:
        parts = [
            np.eye(len(edges) + 1)[np.searchsorted(edges, values, side="right")]
            for edges, values in zip(self._edges, (rows.recency, rows.frequency), strict=True)
        ]
        return np.hstack(parts)
