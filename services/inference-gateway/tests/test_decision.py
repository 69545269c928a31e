"""What the gateway decides without the model: denials only by what is surely precise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from inference_gateway.batch_scores import BatchScore
from inference_gateway.decision import Decider, Reason, Source
from model_release import Release
from model_release.policy import Verdict


@pytest.mark.parametrize(
    ("floor", "batch_score", "expected"),
    [(0.75, None, Verdict.DENY), (0.9, None, Verdict.REVIEW), (0.9, 0.5, Verdict.REVIEW), (0.9, 0.8, Verdict.DENY)],
)
def test_a_rule_that_is_not_surely_precise_sends_to_review(
    release: Release, floor: float, batch_score: float | None, expected: Verdict
) -> None:
    policy = release.manifest.policy.model_copy(update={"deny_precision": floor})
    decider = Decider(replace(release, manifest=release.manifest.model_copy(update={"policy": policy})))
    (rule,) = policy.rules
    vector = np.zeros(len(release.features), dtype=np.float32)
    vector[release.features.index(rule.feature)] = rule.at_least
    batch = None if batch_score is None else BatchScore(batch_score, "card-risk-20180725t000000-0123abcd", False)
    found = decider.without_model(vector, np.ones(len(vector), dtype=np.bool_), Reason.MODEL_DOWN, batch)
    assert (found.verdict, found.score, list(found.rules)) == (expected, 0.875, ["large"])
    assert found.source == (Source.RULES if batch_score is None else Source.BATCH_SCORE)
