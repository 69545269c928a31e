"""Batch scores beside rules: their arithmetic against logits and to the bit between its two forms; what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_release import Policy, ReleaseError, Rule, Thresholds, open_release
from model_release.manifest import BatchPolicy, Manifest, Prior
from model_release.odds import LEAST, MOST, chance, power, powers
from model_release.policy import BatchRisks, FallbackRules, Verdict, risk_of
from model_release.testing import write_toy_release
from pydantic import ValidationError

from models.fraud.features import PLAN

FEATURES = ("amount", "share")
THRESHOLDS = Thresholds(review=0.25, deny=0.75)
CARD = Prior(
    entity="customer", mean=0.01, strength=20.0, factor=0.5, sixteenths=12, thresholds=THRESHOLDS, threshold_basis=""
)
SHOP = CARD.model_copy(update={"entity": "terminal", "mean": 0.02, "sixteenths": 17})
BATCH = BatchPolicy(
    job="card-risk", priors=(CARD, SHOP), factor=3.5, prior_sixteenths=(9, 20), combined_factor=1.25,
    rules_sixteenths=13, batch_sixteenths=6, thresholds=Thresholds(review=0.125, deny=0.625), threshold_basis="",
)  # fmt: skip
POLICY = Policy(
    unrecorded="refuse", base_score=0.0625, batch=BATCH,
    rules=(
        Rule(name="large", feature="amount", at_least=22_000, score=0.875, precision_bound=0.75),
        Rule(name="risky", feature="share", at_least=0.5, score=0.5, precision_bound=0.25),
    ),
)  # fmt: skip
chances = st.floats(LEAST, MOST, width=32)


def logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


@given(chances, st.integers(0, 64))
def test_a_power_of_odds_is_a_multiple_of_the_logit(p: float, sixteenths: int) -> None:
    found = power(p, sixteenths)
    assert math.log(found) == pytest.approx(logit(p) * sixteenths / 16, abs=1e-12, rel=1e-13)
    assert powers(np.array([p]), sixteenths)[0] == found
    assert 0 < chance(found) < 1


@given(st.lists(st.tuples(st.floats(0, 40_000, width=32), st.floats(0, 1, width=32),
                          st.none() | chances, st.none() | chances), min_size=1, max_size=30))  # fmt: skip
def test_columns_equal_single_requests_to_the_bit(rows: list[tuple[float, float, float | None, float | None]]) -> None:
    risks, rules = BatchRisks(BATCH), FallbackRules(POLICY, FEATURES)
    vectors = np.array([row[:2] for row in rows], dtype=np.float32)
    nan = float("nan")
    given_risks = [np.array([nan if r[i] is None else r[i] for r in rows], dtype=np.float32) for i in (2, 3)]
    batch = risks.columns(given_risks)
    scores, found = rules.columns(vectors, THRESHOLDS, batch)
    alone, alone_found = rules.columns(vectors, THRESHOLDS)
    for i, row in enumerate(rows):
        single = risks.score(row[2:])
        assert (single is None) == bool(np.isnan(batch[i]))
        assert single is None or np.float32(single) == batch[i]
        answer, without = rules.score(vectors[i], None, single), rules.score(vectors[i])
        assert (answer.score, answer.verdict(THRESHOLDS)) == (scores[i], found[i])
        assert (without.score, without.verdict(THRESHOLDS)) == (alone[i], alone_found[i])
        assert answer.batch == (single is not None)


def test_rules_and_batch_score_are_a_logistic_combination_with_its_own_thresholds() -> None:
    risks = BatchRisks(BATCH)
    score = risks.score([0.2, None])
    unknown = risk_of(SHOP, SHOP.mean)
    assert score is not None
    assert logit(score) == pytest.approx(math.log(3.5) + 9 / 16 * logit(0.2) + 20 / 16 * logit(unknown), abs=1e-5)
    assert risks.score([None, None]) is None
    answer = FallbackRules(POLICY, FEATURES).score(np.array([22_000, 0], dtype=np.float32), None, score)
    assert logit(answer.score) == pytest.approx(
        math.log(1.25) + 13 / 16 * logit(0.875) + 6 / 16 * logit(score), abs=1e-5
    )
    assert answer.rules == ("large",)
    # Of the combination's thresholds, not the model's.
    high = FallbackRules(POLICY, FEATURES).score(np.array([22_000, 0], dtype=np.float32), None, 0.5)
    assert 0.625 <= high.score < 0.875
    assert high.verdict(Thresholds(review=0.9, deny=0.95)) is Verdict.DENY


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"priors": ()}, "priors"),
        ({"priors": (CARD, CARD)}, "entities must differ"),
        ({"prior_sixteenths": (9,)}, "needs one a prior"),
        ({"prior_sixteenths": (0, 0)}, "all are 0"),
        ({"prior_sixteenths": (9, -1)}, "prior_sixteenths"),
        ({"batch_sixteenths": 0}, "batch_sixteenths"),
        ({"rules_sixteenths": 65}, "rules_sixteenths"),
        ({"factor": 0.0}, "factor"),
        ({"combined_factor": float("inf")}, "combined_factor"),
        ({"job": "Card Risk"}, "job"),
        ({"thresholds": {"review": 0.5, "deny": 0.25}}, "review <= deny"),
        ({"priors": (CARD.model_dump() | {"mean": 1.0}, SHOP)}, "mean"),
        ({"priors": (CARD.model_dump() | {"strength": 0.0}, SHOP)}, "strength"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        BatchPolicy.model_validate(BATCH.model_dump() | changes)


def test_scores_without_odds_and_unknown_entities_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"base_score.*0\.0 has none"):
        Policy.model_validate(POLICY.model_dump() | {"base_score": 0.0})
    body = write_toy_release(tmp_path, PLAN).manifest.model_dump()
    for entity, right in (("customer", True), ("weather", False)):
        batch = BATCH.model_dump() | {"priors": [CARD.model_dump() | {"entity": entity}], "prior_sixteenths": [16]}
        changed = body | {"policy": body["policy"] | {"batch": batch}}
        if right:
            Manifest.model_validate(changed)
        else:
            with pytest.raises(ValidationError, match="'weather' is no entity of the plan"):
                Manifest.model_validate(changed)


def test_a_release_of_before_keeps_its_name(tmp_path: Path) -> None:
    """Its manifest knows nothing of `batch`; a changed one is found out."""
    release = write_toy_release(tmp_path, PLAN)
    file = release.path / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest["policy"].pop("batch") is None
    from model_release.manifest import content_hash, release_id

    manifest["content_hash"] = content_hash(manifest)
    manifest["release"] = release_id(manifest["model"], manifest["content_hash"])
    manifest["files"][f"{manifest['release']}.mar"] = manifest["files"].pop(f"{release.id}.mar")
    old = release.path.rename(tmp_path / manifest["release"])
    (old / f"{release.id}.mar").rename(old / f"{manifest['release']}.mar")
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert open_release(old).manifest.policy.batch is None
    (old / "manifest.json").write_text(json.dumps(manifest).replace('"base_score": 0.0078125', '"base_score": 0.5'))
    with pytest.raises(ReleaseError, match="content_hash"):
        open_release(old)
