"""Calibration, thresholds and rules: each does what its sentence says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.fraud.features import PLAN
from models.fraud.rules import Sample, measure_rules, precision_bound
from models.fraud.thresholds import MIN_DENIED, choose_thresholds
from models.tabular.calibration import Calibration, calibration_error, fit_calibration
from models.tabular.network import LOGIT_STEP, TABLE_SIZE


def test_calibration_finds_the_true_odds() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(-3, 2, 200_000)
    fraud = rng.random(len(logit)) < 1 / (1 + np.exp(-(0.7 * logit - 0.4)))
    found = fit_calibration(logit, fraud)
    assert found.slope == pytest.approx(0.7, abs=0.02)
    assert found.intercept == pytest.approx(-0.4, abs=0.03)
    table = found.table()
    probability = table[np.rint(logit / LOGIT_STEP).astype(int) + TABLE_SIZE // 2]
    assert calibration_error(probability, fraud) < 0.002
    assert calibration_error(Calibration(2.0, 1.0).table()[TABLE_SIZE // 2 + np.rint(logit).astype(int)], fraud) > 0.02


def test_calibration_is_the_maximum_of_the_likelihood() -> None:
    rng = np.random.default_rng(1)
    logit = rng.normal(0, 3, 500)
    fraud = logit + rng.normal(0, 2, 500) > 3
    frauds = fraud.sum()
    target = np.where(fraud, (frauds + 1) / (frauds + 2), 1 / (len(fraud) - frauds + 2))

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] * logit + parameters[1]
        return float((np.logaddexp(0, z) - target * z).sum())

    found = fit_calibration(logit, fraud)
    best = loss(np.array([found.slope, found.intercept]))
    for step in ([0.01, 0.0], [-0.01, 0.0], [0.0, 0.01], [0.0, -0.01]):
        assert loss(np.array([found.slope, found.intercept]) + step) > best


def test_a_ranking_upside_down_is_refused() -> None:
    logit = np.linspace(-3, 3, 200)
    with pytest.raises(ValueError, match="slope is"):
        fit_calibration(logit, logit < 0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.3, 0.6, 0.9, 1.0]))
@settings(deadline=None)
def test_thresholds_keep_budget_and_precision(seed: int, budget: int, precision: float) -> None:
    rng = np.random.default_rng(seed)
    rows, days = 3000, 7
    day, card = rng.integers(0, days, rows), rng.integers(0, 400, rows)
    score = rng.permutation(np.linspace(0.0001, 0.99, rows)).astype(np.float32)
    fraud = rng.random(rows) < score**3
    thresholds, basis = choose_thresholds(day, card, fraud, score, budget, precision)
    cards = sum(len(set(card[(day == d) & (score >= thresholds.review)])) for d in range(days))
    assert cards == budget * days
    assert f"budget {budget}" in basis
    denied = score >= thresholds.deny
    if thresholds.deny < 1:
        assert thresholds.deny == thresholds.review or (
            fraud[denied].mean() >= precision and denied.sum() >= MIN_DENIED
        )
        if thresholds.deny > thresholds.review:
            for lower in np.sort(score[(score >= thresholds.review) & ~denied])[::-1]:
                assert fraud[score >= lower].mean() < precision
    else:
        ranked = fraud[np.argsort(-score)]
        shares = np.cumsum(ranked) / np.arange(1, rows + 1)
        assert (shares[MIN_DENIED - 1 :] < precision).all()
        assert "never" in basis


@pytest.mark.parametrize(("budget", "precision"), [(0, 0.9), (10, 0.0), (10, 1.1)])
def test_impossible_wishes_are_refused(budget: int, precision: float) -> None:
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="review_budget must be at least 1"):
        choose_thresholds(one, one, one.astype(np.bool_), one.astype(np.float32), budget, precision)


def sample(seed: int, count: int = 20_000) -> Sample:
    """Nine of ten large amounts are fraud, and half of what happens at terminals with a past."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((count, len(PLAN.features)), dtype=np.float32)
    rows[:, 0] = rng.integers(100, 25_000, len(rows))
    share = PLAN.features.index("terminal_fraud_share_7d")
    rows[:, share] = np.where(rng.random(len(rows)) < 0.01, 0.5, 0.0)
    fraud = (rows[:, 0] > 24_000) & (rng.random(len(rows)) < 0.9)
    fraud |= (rows[:, share] > 0) & (rng.random(len(rows)) < 0.5)
    return Sample(rows, fraud)


def test_rules_have_the_precision_they_say() -> None:
    later = sample(4)
    rows, fraud, share = later.rows, later.fraud, PLAN.features.index("terminal_fraud_share_7d")
    policy = measure_rules(PLAN.features, sample(3), later, deny_precision=0.8)
    by_feature = {rule.feature: rule for rule in policy.rules}
    assert set(by_feature) == {"amount", "terminal_fraud_share_7d"}
    assert by_feature["amount"].at_least == pytest.approx(24_001, abs=30)
    assert by_feature["terminal_fraud_share_7d"].at_least == 0.5
    for feature, rule in by_feature.items():
        fires = rows[:, PLAN.features.index(feature)] >= rule.at_least
        assert rule.score == pytest.approx(fraud[fires].mean(), rel=0.02)
    fired = (rows[:, 0] >= by_feature["amount"].at_least) | (rows[:, share] >= 0.5)
    assert policy.base_score == pytest.approx(fraud[~fired].mean(), abs=2 / (~fired).sum())
    assert policy.unrecorded == "refuse"
    may_deny = {f for f, rule in by_feature.items() if rule.precision_bound >= policy.deny_precision}
    assert may_deny == {"amount"}


def test_a_rule_is_measured_on_days_that_it_was_not_chosen_on() -> None:
    calm = sample(5)
    calm = Sample(calm.rows, calm.fraud & (calm.rows[:, 0] <= 24_000))
    (rule,) = measure_rules(PLAN.features, sample(3), calm).rules
    assert rule.feature == "terminal_fraud_share_7d"


@given(st.integers(0, 400), st.integers(0, 400))
@settings(deadline=None)
def test_a_bound_is_what_chance_leaves(hits: int, misses: int) -> None:
    """Were the precision the bound itself, so many hits or more would come in one of twenty times."""
    alerts = hits + misses
    bound = precision_bound(hits, alerts)
    chance = sum(math.comb(alerts, k) * bound**k * (1 - bound) ** (alerts - k) for k in range(hits, alerts + 1))
    assert chance == pytest.approx(0.05, rel=1e-6) if hits else bound == 0.0
    assert bound <= hits / (alerts + 1)
