"""What the network sees of a transaction: quotients beside the features, and where the segments of each begin.

Pure functions of the training rows; the result is a `model_release.exact_network.Encoding`, which the released module
carries out itself.
"""

from __future__ import annotations

import numpy as np
import torch
from model_release.exact_network import ENCODING_BITS, Encoder, Encoding
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier  # type: ignore[import-untyped]
from torch import Tensor

# How this amount, and the customer's last day and week, compare with what the customer usually spends.
QUOTIENTS = (
    ("amount", "customer_mean_amount_1d"),
    ("amount", "customer_mean_amount_7d"),
    ("amount", "customer_mean_amount_30d"),
    ("customer_mean_amount_1d", "customer_mean_amount_30d"),
    ("customer_mean_amount_7d", "customer_mean_amount_30d"),
)

QUANTILES = 12
FRAUD_QUANTILES = 6
TREE_LEAVES = 16
TREE_LEAST_ROWS = 20
TREE_FRAUD_WEIGHT = 20.0


def columns_of(features: tuple[str, ...], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The features and QUOTIENTS of them: float32 [n, F] -> float64 [n, F + Q]."""
    numerator, denominator = _quotient_indices(features)
    wide = rows.astype(np.float64)
    return np.hstack([wide, wide[:, numerator] / np.maximum(wide[:, denominator], 1.0)])


def encoding_of(features: tuple[str, ...], rows: NDArray[np.float32], fraud: NDArray[np.bool_]) -> Encoding:
    """Segments between edges for every column of `columns_of`.

    Edges are quantiles of all rows, quantiles of the frauds, and the cuts by which a small decision tree on this
    column alone tells frauds from others (Gorishniy et al., 2022, use either kind; both together did better here).

    rows float32 [n, F]; fraud bool [n] with at least one True.
    """
    index, starts, scales = [], [], []
    for column, values in enumerate(columns_of(features, rows).T):
        edges = np.unique(
            np.concatenate(
                [
                    np.quantile(values, np.linspace(0, 1, QUANTILES + 1)),
                    np.quantile(values[fraud], np.linspace(0, 1, FRAUD_QUANTILES + 1)),
                    _tree_cuts(values, fraud),
                ]
            )
        )
        if len(edges) == 1:
            edges = np.append(edges, edges[0] + 1.0)
        index.append(np.full(len(edges) - 1, column))
        starts.append(edges[:-1])
        scales.append(1.0 / np.diff(edges))
    numerator, denominator = _quotient_indices(features)
    return Encoding(numerator, denominator, np.concatenate(index), np.concatenate(starts), np.concatenate(scales))


def encode(encoding: Encoding, rows: NDArray[np.float32]) -> Tensor:
    """float32 [n, E], 0..1 in steps of 2^-ENCODING_BITS: just what the exact network will see."""
    encoder = Encoder(encoding)
    with torch.inference_mode():
        parts = [
            (encoder(torch.from_numpy(part)) / 2.0**ENCODING_BITS).to(torch.float32)
            for part in np.array_split(rows, max(1, len(rows) // 8192))
        ]
    return torch.cat(parts).clone()


def _tree_cuts(values: NDArray[np.float64], fraud: NDArray[np.bool_]) -> NDArray[np.float64]:
    tree = DecisionTreeClassifier(max_leaf_nodes=TREE_LEAVES, min_samples_leaf=TREE_LEAST_ROWS, random_state=0)
    tree.fit(values[:, None], fraud, sample_weight=np.where(fraud, TREE_FRAUD_WEIGHT, 1.0))
    inner = tree.tree_.feature >= 0
    cuts: NDArray[np.float64] = tree.tree_.threshold[inner]
    return cuts


def _quotient_indices(features: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    above, below = zip(*QUOTIENTS, strict=True)
    return np.array([features.index(name) for name in above]), np.array([features.index(name) for name in below])
