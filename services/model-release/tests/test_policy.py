"""Verdicts at and around the thresholds; what answers without the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_release import Policy, Rule, Thresholds
from model_release.policy import FallbackRules, Verdict, fallback_score, verdict, verdicts
from pydantic import ValidationError
from trine.events.v1 import events_pb2

THRESHOLDS = Thresholds(review=0.25, deny=0.75)
FEATURES = ("amount", "share")
POLICY = Policy(
    unrecorded="refuse",
    base_score=0.0625,
    deny_precision=0.75,
    rules=(
        Rule(name="large", feature="amount", at_least=22_000, score=0.875, precision_bound=0.75),
        Rule(name="risky", feature="share", at_least=0.5, score=0.5, precision_bound=0.25),
    ),
)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.0, Verdict.APPROVE),
        (float(np.nextafter(np.float32(0.25), np.float32(0))), Verdict.APPROVE),
        (0.25, Verdict.REVIEW),
        (float(np.nextafter(np.float32(0.75), np.float32(0))), Verdict.REVIEW),
        (0.75, Verdict.DENY),
        (1.0, Verdict.DENY),
    ],
)
def test_verdict_at_the_edges(score: float, expected: Verdict) -> None:
    assert verdict(score, THRESHOLDS) is expected


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf")])
def test_what_is_no_probability_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="must be a probability"):
        verdict(score, THRESHOLDS)
    with pytest.raises(ValueError, match="must be probabilities"):
        verdicts(np.array([0.5, score], dtype=np.float32), THRESHOLDS)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50), st.floats(0.001, 1), st.floats(0, 1))
def test_column_equals_single(scores: list[float], review: float, more: float) -> None:
    thresholds = Thresholds(review=review, deny=review + (1 - review) * more)
    column = np.array(scores, dtype=np.float32)
    assert verdicts(column, thresholds).tolist() == [verdict(float(s), thresholds) for s in column]


def test_numbers_are_those_of_the_contract() -> None:
    assert {f"VERDICT_{v.name}": v.value for v in Verdict} == {
        name: number for name, number in events_pb2.Verdict.items() if number
    }


@pytest.mark.parametrize(
    ("vector", "batch", "score", "rules"),
    [
        ([100, 0.0], None, 0.0625, ()),
        ([22_000, 0.0], None, 0.875, ("large",)),
        ([21_999, 0.5], None, 0.5, ("risky",)),
        ([30_000, 0.9], None, 0.875, ("large", "risky")),
        ([np.nan, np.nan], None, 0.0625, ()),
        ([np.nan, 0.9], None, 0.5, ("risky",)),
        ([100, 0.0], 0.25, 0.25, ()),
        ([100, 0.0], 0.03125, 0.03125, ()),
        ([22_000, 0.0], 0.25, 0.875, ("large",)),
        ([22_000, 0.0], 0.9375, 0.9375, ("large",)),
    ],
)
def test_fallback(vector: list[float], batch: float | None, score: float, rules: tuple[str, ...]) -> None:
    found = fallback_score(np.array(vector, dtype=np.float32), None, POLICY, FEATURES, batch)
    assert (found.score, found.rules, found.batch) == (score, rules, batch is not None)


@pytest.mark.parametrize(
    ("bound", "floor", "batch", "expected"),
    [
        (0.9, 0.9, None, Verdict.DENY),
        (0.89, 0.9, None, Verdict.REVIEW),
        (0.0, 0.9, None, Verdict.REVIEW),
        (0.5, 0.5, None, Verdict.DENY),
        # A batch score is calibrated: it may deny by itself, but lends nothing to a rule.
        (0.0, 0.9, 0.75, Verdict.DENY),
        (0.0, 0.9, 0.5, Verdict.REVIEW),
    ],
)
def test_a_rule_denies_only_where_it_is_surely_precise(
    bound: float, floor: float, batch: float | None, expected: Verdict
) -> None:
    rule = Rule(name="large", feature="amount", at_least=1, score=0.95, precision_bound=bound)
    policy = Policy(unrecorded="refuse", base_score=0.0, deny_precision=floor, rules=(rule,))
    found = fallback_score(np.array([1, 0], dtype=np.float32), None, policy, FEATURES, batch)
    assert (found.score, found.verdict(THRESHOLDS)) == (float(np.float32(0.95)), expected)


def test_a_weak_rule_beside_a_sure_one_does_not_raise_it_to_a_denial() -> None:
    weak = Rule(name="weak", feature="share", at_least=0.5, score=0.9, precision_bound=0.2)
    sure = Rule(name="sure", feature="amount", at_least=1, score=0.5, precision_bound=0.4)
    policy = Policy(unrecorded="refuse", base_score=0.0, deny_precision=0.4, rules=(weak, sure))
    found = fallback_score(np.array([1, 1], dtype=np.float32), None, policy, FEATURES)
    assert (found.rules, found.verdict(THRESHOLDS)) == (("weak", "sure"), Verdict.REVIEW)
    assert found.verdict(Thresholds(review=0.25, deny=0.5)) is Verdict.DENY


def test_a_bound_above_the_precision_is_refused() -> None:
    with pytest.raises(ValidationError, match="precision_bound is a lower bound"):
        Rule(name="x", feature="amount", at_least=1, score=0.5, precision_bound=0.6)
    for floor in (0.0, 1.5, float("nan")):
        with pytest.raises(ValidationError, match="deny_precision"):
            Policy(unrecorded="refuse", base_score=0.0, deny_precision=floor)


def test_a_rule_on_an_unusable_feature_does_not_fire() -> None:
    rules = FallbackRules(POLICY, FEATURES)
    vector = np.array([30_000, 0.9], dtype=np.float32)
    assert rules.score(vector, np.array([False, True])).rules == ("risky",)
    assert rules.score(vector, np.array([False, False])).score == 0.0625


@pytest.mark.parametrize(("review", "deny"), [(0.0, 0.5), (0.6, 0.5), (0.5, 1.5), (float("nan"), 0.5)])
def test_thresholds_out_of_order_are_refused(review: float, deny: float) -> None:
    with pytest.raises(ValidationError):
        Thresholds(review=review, deny=deny)


def test_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="names must differ"):
        Policy(unrecorded="answer", base_score=0.1, rules=(POLICY.rules[0], POLICY.rules[0]))
