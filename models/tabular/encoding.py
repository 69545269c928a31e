"""What a network sees of a row: quotients beside the features, and where the segments of each begin.

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

Quotients = tuple[tuple[str, str], ...]
"""Pairs of features: the first over the second, the latter at least 1."""

QUANTILES = 12
POSITIVE_QUANTILES = 6
TREE_LEAVES = 16
TREE_LEAST_ROWS = 20
TREE_POSITIVE_WEIGHT = 20.0


def columns_of(features: tuple[str, ...], rows: NDArray[np.float32], quotients: Quotients) -> NDArray[np.float64]:
    """The features and quotients of them: float32 [n, F] -> float64 [n, F + Q]."""
    numerator, denominator = _quotient_indices(features, quotients)
    wide = rows.astype(np.float64)
    return np.hstack([wide, wide[:, numerator] / np.maximum(wide[:, denominator], 1.0)])


def encoding_of(
    features: tuple[str, ...], rows: NDArray[np.float32], positive: NDArray[np.bool_], quotients: Quotients
) -> Encoding:
    """Segments between edges for every column of `columns_of`.

    Edges are quantiles of all rows, quantiles of the positive ones, and the cuts by which a small decision tree on
    this column alone tells them from others (Gorishniy et al., 2022, use either kind; both together did better here).

    rows float32 [n, F]; positive bool [n] with at least one True.
    """
    index, starts, scales = [], [], []
    for column, values in enumerate(columns_of(features, rows, quotients).T):
        edges = np.unique(
            np.concatenate(
                [
                    np.quantile(values, np.linspace(0, 1, QUANTILES + 1)),
                    np.quantile(values[positive], np.linspace(0, 1, POSITIVE_QUANTILES + 1)),
                    _tree_cuts(values, positive),
                ]
            )
        )
        if len(edges) == 1:
            edges = np.append(edges, edges[0] + 1.0)
        index.append(np.full(len(edges) - 1, column))
        starts.append(edges[:-1])
        scales.append(1.0 / np.diff(edges))
    numerator, denominator = _quotient_indices(features, quotients)
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


def _tree_cuts(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    tree = DecisionTreeClassifier(max_leaf_nodes=TREE_LEAVES, min_samples_leaf=TREE_LEAST_ROWS, random_state=0)
    tree.fit(values[:, None], positive, sample_weight=np.where(positive, TREE_POSITIVE_WEIGHT, 1.0))
    inner = tree.tree_.feature >= 0
    cuts: NDArray[np.float64] = tree.tree_.threshold[inner]
    return cuts


def _quotient_indices(features: tuple[str, ...], quotients: Quotients) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = np.array([[features.index(name) for name in pair] for pair in quotients], dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
