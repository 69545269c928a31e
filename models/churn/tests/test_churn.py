"""Churn: customers who leave, features at cut-offs, a model beside recency and frequency, and the nightly job."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from batch_scorer.runner import run_job
from batch_scorer.settings import BatchSettings
from feature_store.dataset import DAY_US
from model_release import open_release, scoring_module
from pyspark.sql import SparkSession

from models.churn.batch_churn import JOB
from models.churn.features import PLAN
from models.churn.history import Activity
from models.churn.release_training import (
    BASELINE,
    MODEL,
    Choices,
    Trained,
    churn_recipe,
    evaluate_release,
    train_release,
)
from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters
from models.fraud.history import day_number
from models.fraud.population import make_population, make_transactions
from models.tabular.errors import TooLittleData

PARAMETERS = GeneratorParameters(customers=900, terminals=900, days=210, seed=5, churn_rate=0.12)
CUTOFF = day_number(dt.date(2018, 4, 1)) + 178
CHOICES = Choices(3, replace(churn_recipe(), epochs=8))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cards"
    generate(PARAMETERS, path)
    return path


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_release(dataset, tmp_path_factory.mktemp("releases"), CUTOFF, CHOICES)


def test_customers_leave_at_the_rate_asked_for_and_slow_down_before() -> None:
    parameters = GeneratorParameters(customers=4_000, terminals=3_000, days=120, seed=1, churn_rate=0.2)
    population = make_population(parameters)
    # Hazards are exponential with mean h: the share that is left after t is 1 / (1 + h t).
    for days in (30, 60, 120):
        left = (population.leaves > days).mean()
        assert left == pytest.approx(1 / (1 + 0.2 * days / 30), abs=0.025)
    made = make_transactions(population, parameters)
    assert (made.day < population.leaves[made.customer]).all()
    ahead = population.leaves[made.customer] - made.day
    per_day = [((ahead > a) & (ahead <= a + 7)).sum() for a in (0, 7, 14, 21, 28, 35)]
    assert per_day[0] < 0.3 * per_day[4]
    assert per_day == sorted(per_day[:5]) + per_day[5:]
    assert per_day[5] == pytest.approx(per_day[4], rel=0.2)


def test_nobody_leaves_by_default_and_nothing_else_changes() -> None:
    small = GeneratorParameters(customers=50, terminals=80, days=3)
    assert not [name for name in small.to_json() if name.startswith("churn")]
    assert np.isinf(make_population(small).leaves).all()
    leaving = make_population(replace(small, churn_rate=0.5))
    stays = make_population(small)
    assert (leaving.mean_per_day == stays.mean_per_day).all()
    assert (leaving.reach == stays.reach).all()


def test_features_and_labels_equal_sql(dataset: Path) -> None:
    snapshot = Activity(dataset, CUTOFF - 90, CUTOFF + 30).snapshot(CUTOFF)
    db = duckdb.connect()
    db.execute("set timezone = 'UTC'")
    windows = ", ".join(
        f"count(*) filter (event_time >= $at - interval {d} day), "
        f"coalesce(sum(amount) filter (event_time >= $at - interval {d} day), 0)"
        for d in (1, 2, 4, 7, 14, 21, 30, 45, 60, 90)
    )
    at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=CUTOFF)
    rows = db.execute(
        f"""select customer_id, customer_id not in (
            select customer_id from '{dataset}/transactions/*.parquet'
            where event_time >= $at and event_time < $at + interval 30 day) as gone, {windows}
        from '{dataset}/transactions/*.parquet'
        where event_time < $at and event_time >= $at - interval 90 day group by 1""",
        {"at": at},
    ).fetchall()
    expected = {row[0]: (row[1], [float(np.float32(value)) for value in row[2:]]) for row in rows}
    found = {
        key: (bool(gone), vector.tolist())
        for key, gone, vector in zip(snapshot.keys, snapshot.gone, snapshot.vectors, strict=True)
    }
    assert found == expected
    assert 0.05 < snapshot.gone.mean() < 0.6


def test_better_than_recency_and_frequency(dataset: Path, trained: Trained) -> None:
    assert trained.test is not None
    model, baseline = trained.test[MODEL], trained.test[BASELINE]
    assert model["auc_roc"] > baseline["auc_roc"]
    assert model["average_precision"] > baseline["average_precision"]
    assert model["brier"] < baseline["brier"]
    release = open_release(trained.release.path)
    assert (release.manifest.metrics["test"], release.manifest.metrics["validation"]) == (
        model,
        trained.validation[MODEL],
    )
    assert str(model["brier"]) in (release.path / "model_card.md").read_text()
    again = evaluate_release(release, dataset, CUTOFF)
    assert again[MODEL] == model


def test_same_data_and_seed_same_release(dataset: Path, trained: Trained, tmp_path: Path) -> None:
    assert train_release(dataset, tmp_path, CUTOFF, CHOICES).release.id == trained.release.id


def test_too_little_data_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TooLittleData, match=r"transactions from .* are needed, found 2018-04-01 to"):
        train_release(dataset, tmp_path, CUTOFF - 100, CHOICES)
    with pytest.raises(TooLittleData, match="are needed"):
        train_release(dataset, tmp_path, CUTOFF + 100, CHOICES)


def test_the_nightly_run_is_what_training_would_say(
    dataset: Path, trained: Trained, tmp_path: Path, redis_url: str, spark: SparkSession
) -> None:
    warehouse = tmp_path / "warehouse"
    warehouse.mkdir()
    (warehouse / "transactions").symlink_to(dataset / "transactions")
    settings = BatchSettings.model_validate(
        {
            "redis_url": redis_url,
            "warehouse": str(warehouse),
            "releases": trained.release.path.parent,
            "scratch": tmp_path / "scratch",
        }
    )
    manifest = run_job(JOB, CUTOFF * DAY_US, settings)
    asked = Activity(dataset, CUTOFF - 90, CUTOFF).snapshot(CUTOFF)
    scores = scoring_module.load(trained.release.module_path)(asked.vectors)
    rows = [
        row
        for part in sorted((warehouse / "runs" / "churn" / manifest.run).glob("*.parquet"))
        for row in pq.read_table(part).to_pylist()
    ]
    count = PLAN.features.index("activity_count_30d")
    expected = {
        key: (float(score), int(vector[count]))
        for key, score, vector in zip(asked.keys, scores, asked.vectors, strict=True)
    }
    assert {row["key"]: (row["probability"], row["activity_count_30d"]) for row in rows} == expected
    assert manifest.population == len(rows) == len(expected)
