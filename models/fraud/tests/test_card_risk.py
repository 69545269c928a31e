"""Card risk: priors, their fit, what they are worth beside the rules, and the batch run against a plain computation."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import redis
from batch_scorer.errors import JobError
from batch_scorer.predictions import Predictions
from batch_scorer.runner import run_job
from batch_scorer.settings import BatchSettings
from feature_store.dataset import DAY_US
from model_release import scoring_module
from model_release.policy import BatchRisks
from model_release.testing import write_toy_release
from pyspark.sql import SparkSession

from models.fraud.batch_card_risk import JOB
from models.fraud.card_risk import WINDOW_DAYS, credibility
from models.fraud.evaluation import score_rows
from models.fraud.fallback import BLIND, RULES, WITH_BATCH, ScoredDays
from models.fraud.fallback_evaluation import evaluate_fallback
from models.fraud.features import PLAN
from models.fraud.history import day_number, load_history
from models.fraud.release_training import Trained
from models.fraud.sources import load_transactions
from models.fraud.testing import FOLD
from models.tabular.log_odds import fit_log_odds

CUTOFF = day_number(dt.date(2018, 6, 5))


def test_credibility_weighs_what_differs_between_groups_against_what_differs_within() -> None:
    rng = np.random.default_rng(2)
    key = np.repeat(np.arange(3_000), rng.integers(1, 40, 3_000))
    own = rng.normal(0.3, 0.05, 3_000)
    scores = (own[key] + rng.normal(0, 0.2, len(key))).astype(np.float32)
    mean, strength = credibility(key, scores)
    assert mean == pytest.approx(0.3, abs=0.005)
    assert strength == pytest.approx(0.2**2 / 0.05**2, rel=0.1)
    # Groups that do not differ: their own scores say nothing.
    assert credibility(key, rng.permutation(scores - own[key].astype(np.float32) + 0.3))[1] > 300


def test_weights_are_found_and_none_is_negative() -> None:
    rng = np.random.default_rng(4)
    columns = rng.normal(0, 2, (60_000, 3))
    chance = 1 / (1 + np.exp(-(columns @ [0.75, 0.25, 0.0] - 2.0)))
    happened = rng.random(len(columns)) < chance
    (first, second, third), factor = fit_log_odds(columns, happened)
    assert (abs(first - 12) <= 1, abs(second - 4) <= 1, third <= 1) == (True, True, True)
    assert factor == pytest.approx(math.exp(-2), rel=0.1)
    (first, opposite), factor = fit_log_odds(columns[:, :2] * [1, -1], happened)
    assert (abs(first - 12) <= 1, opposite) == (True, 0)
    # As much is predicted as happened, also with a weight less.
    fitted = 1 / (1 + np.exp(-(columns[:, 0] * first / 16 + math.log(factor))))
    assert fitted.sum() == pytest.approx(happened.sum(), rel=1e-6)


def test_with_batch_scores_the_fallback_is_better_than_rules_alone(dataset: Path, trained: Trained) -> None:
    """On days after all that anything was fitted on; the same figures from the release and the dataset alone."""
    rules, both = (trained.fallback["test"][name] for name in (RULES, WITH_BATCH))
    assert both["average_precision"] > rules["average_precision"]
    assert both["auc_roc"] > rules["auc_roc"] + 0.01
    # With as many cards to look at, about as many frauds are seen.
    assert both["recall"] > rules["recall"] - 0.03
    blind, both_blind = (trained.fallback["test"][name + BLIND] for name in (RULES, WITH_BATCH))
    assert both_blind["auc_roc"] > blind["auc_roc"] + 0.02
    assert evaluate_fallback(trained.release, dataset, FOLD.test_start, FOLD.test_end) == trained.fallback["test"]
    card = (trained.release.path / "model_card.md").read_text()
    assert str(both["average_precision"]) in card


def test_a_run_has_every_entity_with_the_risk_that_training_computes(
    dataset: Path, trained: Trained, tmp_path: Path, redis_url: str, spark: SparkSession
) -> None:
    warehouse = tmp_path / "warehouse"
    warehouse.mkdir()
    for folder in ("transactions", "fraud-reports"):
        (warehouse / folder).symlink_to(dataset / folder)
    settings = BatchSettings.model_validate(
        {
            "redis_url": redis_url,
            "warehouse": str(warehouse),
            "releases": trained.release.path.parent,
            "release": trained.release.id,
            "scratch": tmp_path / "scratch",
        }
    )
    manifest = run_job(JOB, CUTOFF * DAY_US, settings)

    release = trained.release
    batch = release.manifest.policy.batch
    assert batch is not None
    history = load_history(dataset, PLAN, CUTOFF - WINDOW_DAYS, CUTOFF)
    scores = score_rows(scoring_module.load(release.module_path), history.vectors)
    table = load_transactions(dataset, (CUTOFF - WINDOW_DAYS) * DAY_US, CUTOFF * DAY_US)
    expected: dict[str, tuple[float, int]] = {}
    for prior in batch.priors:
        of_key: dict[str, list[float]] = {}
        for key, score in zip(table.column(f"{prior.entity}_id").to_pylist(), scores.tolist(), strict=True):
            of_key.setdefault(f"{prior.entity}:{key}", []).append(score)
        for key, found in of_key.items():
            mean = (prior.strength * prior.mean + math.fsum(found)) / (prior.strength + len(found))
            odds = prior.factor * (mean / (1 - mean)) ** (prior.sixteenths / 16)
            expected[key] = odds / (1 + odds), len(found)
    rows = [
        row
        for part in sorted((warehouse / "runs" / "card-risk" / manifest.run).glob("*.parquet"))
        for row in pq.read_table(part).to_pylist()
    ]
    assert {row["key"] for row in rows} == set(expected)
    assert len(rows) == len(expected) == manifest.population
    levels = {prior.entity: prior.thresholds for prior in batch.priors}
    for row in rows:
        risk, count = expected[row["key"]]
        assert row["risk"] == pytest.approx(risk, rel=1e-5)
        assert row["transactions"] == count
        thresholds = levels[row["key"].partition(":")[0]]
        assert row["level"] == (
            "deny" if row["risk"] >= thresholds.deny else "review" if row["risk"] >= thresholds.review else "approve"
        )

    # To the bit what training computed its combination with, and what readers are given.
    history = load_history(dataset, PLAN, CUTOFF - WINDOW_DAYS, CUTOFF + 1)
    all_scores = score_rows(scoring_module.load(release.module_path), history.vectors)
    days = ScoredDays.of(history, np.flatnonzero(history.day == CUTOFF), all_scores)
    today = load_transactions(dataset, CUTOFF * DAY_US, (CUTOFF + 1) * DAY_US).to_pylist()
    published = {row["key"]: row["risk"] for row in rows}
    risks = BatchRisks(batch)
    single = [risks.score([published.get(f"{e}:{row[f'{e}_id']}") for e in risks.entities]) for row in today]
    column = days.batch_scores(batch)
    assert [None if np.isnan(s) else float(s) for s in column] == single
    with redis.Redis.from_url(redis_url) as client:
        read = Predictions(client).read("card-risk", [rows[0]["key"]])
    assert read.values[0] == {name: rows[0][name] for name in ("risk", "transactions", "level")}


def test_a_release_without_priors_is_refused(
    dataset: Path, tmp_path: Path, redis_url: str, spark: SparkSession
) -> None:
    write_toy_release(tmp_path / "releases", PLAN)
    settings = BatchSettings.model_validate(
        {
            "redis_url": redis_url,
            "warehouse": str(tmp_path),
            "releases": tmp_path / "releases",
            "scratch": tmp_path / "scratch",
        }
    )
    for folder in ("transactions", "fraud-reports"):
        (tmp_path / folder).symlink_to(dataset / folder)
    with pytest.raises(JobError, match=r"says nothing of batch scores .*trine train fraud"):
        run_job(JOB, CUTOFF * DAY_US, settings)
