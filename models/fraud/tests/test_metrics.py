"""The metrics against scikit-learn and against the book's own words in plain Python."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score  # type: ignore[import-untyped]

from models.fraud.metrics import card_precision
from models.tabular.ranking import auc_roc, average_precision

Column = NDArray[Any]


def draw_rows(seed: int, rows: int, levels: int) -> tuple[Column, Column, Column, Column]:
    """day, card, fraud, score with many ties where `levels` is small."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 4, rows),
        rng.integers(0, max(2, rows // 5), rows),
        rng.random(rows) < 0.2,
        rng.integers(0, levels, rows) / levels,
    )


@given(st.integers(0, 2**32 - 1), st.integers(2, 400), st.sampled_from([2, 7, 1000]))
@settings(deadline=None)
def test_ranking_metrics_equal_scikit_learn(seed: int, rows: int, levels: int) -> None:
    _, _, fraud, score = draw_rows(seed, rows, levels)
    fraud = fraud.copy()
    fraud[:2] = [True, False]
    assert auc_roc(fraud, score) == pytest.approx(roc_auc_score(fraud, score), abs=1e-12)
    assert average_precision(fraud, score) == pytest.approx(average_precision_score(fraud, score), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.sampled_from([2, 7, 1000]), st.sampled_from([1, 5, 100]))
@settings(deadline=None)
def test_card_precision_equals_the_definition(seed: int, rows: int, levels: int, top: int) -> None:
    day, card, fraud, score = draw_rows(seed, rows, levels)
    assert card_precision(day, card, fraud, score, top) == pytest.approx(
        by_definition(day, card, fraud, score, top), abs=1e-12
    )


def by_definition(day: Column, card: Column, fraud: Column, score: Column, top: int) -> float:
    detected: set[int] = set()
    shares = []
    for today in sorted(set(day.tolist())):
        best: dict[int, float] = defaultdict(float)
        bad: dict[int, bool] = defaultdict(bool)
        for d, c, f, s in zip(day.tolist(), card.tolist(), fraud.tolist(), score.tolist(), strict=True):
            if d == today and c not in detected:
                best[c] = max(best[c], s)
                bad[c] |= f
        alerts = sorted(best, key=lambda c: (-best[c], c))[:top]
        hits = [c for c in alerts if bad[c]]
        detected.update(hits)
        shares.append(len(hits) / top)
    return sum(shares) / len(shares)


def test_card_precision_by_hand() -> None:
    day = np.array([0, 0, 0, 1, 1, 1])
    card = np.array([1, 1, 2, 1, 2, 3])
    fraud = np.array([False, True, False, True, True, False])
    score = np.array([0.9, 0.1, 0.5, 0.9, 0.2, 0.8])
    # Day 0 finds card 1, though its fraud is not the transaction that raised the alert; day 1 does not see it again.
    assert card_precision(day, card, fraud, score, top=1) == pytest.approx((1 + 0) / 2)
    assert card_precision(day, card, fraud, score, top=2) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_a_missing_class_is_named() -> None:
    none, some = np.zeros(3, dtype=np.bool_), np.array([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="found 0 positive rows and 3 others"):
        auc_roc(none, some)
    with pytest.raises(ValueError, match="at least one positive row"):
        average_precision(none, some)
