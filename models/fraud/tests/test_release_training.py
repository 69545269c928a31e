"""From generated data to a release and back: protocol, determinism, and the numbers on the card."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from feature_store.dataset import DAY_US
from model_release import open_release, scoring_module

from models.fraud.errors import TooLittleData
from models.fraud.evaluation import evaluate_release, score_rows
from models.fraud.features import PLAN, QUOTIENTS
from models.fraud.history import LabelledHistory, day_number, load_history
from models.fraud.protocol import Fold, test_rows, train_rows
from models.fraud.release_training import Trained, fit_fold, train_release
from models.fraud.testing import CHOICES, FOLD, QUICK
from models.tabular.calibration import Calibration
from models.tabular.encoding import encode
from models.tabular.network import exact, logits
from models.tabular.training import fit

test_rows.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def history(dataset: Path) -> LabelledHistory:
    return load_history(dataset, PLAN, FOLD.validation().train_start, FOLD.test_end)


def test_fold_days() -> None:
    fold = Fold(day_number(dt.date(2018, 8, 8)))
    days = [fold.train_start, fold.train_end, fold.test_start, fold.test_end]
    assert [day - day_number(dt.date(2018, 7, 25)) for day in days] == [0, 7, 14, 21]
    earlier = fold.validation()
    # The last day whose labels are known when the fold trains, and no earlier.
    assert earlier.test_end == fold.train_end
    assert earlier.test_end * DAY_US + fold.delay_days * DAY_US == fold.trained_at_us


def test_rows_and_labels_equal_sql(dataset: Path, history: LabelledHistory) -> None:
    """Who is trained on, who is left out and why, re-derived by DuckDB from the files."""
    db = duckdb.connect()
    db.execute("set timezone = 'UTC'")
    db.execute(f"create view tx as select * from '{dataset}/transactions/*.parquet'")
    db.execute(f"create view report as select * from '{dataset}/fraud-reports/*.parquet'")
    db.execute(
        """create macro known(until) as table
        select transaction_id, arg_max(fraud, (reported_at, fraud)) as fraud from report
        where reported_at <= until group by 1"""
    )
    start = dt.datetime(2018, 6, 5, tzinfo=dt.UTC)
    kept: list[tuple[int, bool]] = []
    for number in range(7):
        today = start + dt.timedelta(days=number)
        kept += db.execute(
            """select epoch_us(tx.event_time), coalesce(late.fraud, false) from tx
            left join known(timestamptz '2100-01-01') late using (transaction_id)
            where event_time >= $day and event_time < $day + interval 1 day and customer_id not in (
                select customer_id from tx join known($day) k using (transaction_id)
                where k.fraud and event_time >= $since)
            order by event_time, try_cast(transaction_id as bigint)""",
            {"day": today, "since": start - dt.timedelta(days=14)},
        ).fetchall()
    rows = test_rows(history, FOLD)
    assert history.time_us[rows].tolist() == [time for time, _ in kept]
    assert history.fraud[rows].tolist() == [fraud for _, fraud in kept]
    assert len(rows) < (history.day >= FOLD.test_start).sum()
    found = db.execute(
        """select count(*), count(*) filter (k.fraud) from tx left join known($at) k using (transaction_id)
        where event_time >= $at - interval 14 day and event_time < $at - interval 7 day""",
        {"at": start},
    ).fetchone()
    chosen = train_rows(history, FOLD)
    assert found == (len(chosen), history.fraud_as_known(FOLD.trained_at_us)[chosen].sum())


def test_exact_network_follows_the_trained_one(history: LabelledHistory) -> None:
    rows = train_rows(history, FOLD)
    fitted = fit(PLAN.features, history.vectors[rows], history.fraud[rows], QUICK, QUOTIENTS)
    network = exact(fitted.encoding, fitted.ensemble, Calibration(1.0, 0.0).table())
    trained_logit = fitted.ensemble(encode(fitted.encoding, history.vectors[rows])).mean(0).detach().numpy()
    assert np.abs(logits(network, history.vectors[rows]) - trained_logit).max() < 0.01


def test_release_scores_what_training_measured(dataset: Path, history: LabelledHistory, trained: Trained) -> None:
    release = open_release(trained.release.path)
    rows = test_rows(history, FOLD)
    scores = score_rows(scoring_module.load(release.module_path), history.vectors[rows])
    final = fit_fold(history, FOLD, rows, QUICK)
    slope, intercept = (release.manifest.calibration[name] for name in ("slope", "intercept"))
    assert isinstance(slope, float)
    assert isinstance(intercept, float)
    calibration = Calibration(slope, intercept)
    assert (scores.view(np.int32) == calibration.probabilities(final.logit).view(np.int32)).all()
    again = evaluate_release(release, dataset, FOLD.test_start, FOLD.test_end)
    assert trained.test is not None
    assert again == trained.test
    assert again.metrics.auc_roc > 0.7
    assert again.metrics.average_precision > 0.3
    assert release.plan == PLAN
    assert release.manifest.metrics["test"] == json.loads(json.dumps(again.summary()))
    card = (release.path / "model_card.md").read_text()
    assert str(again.summary()["average_precision"]) in card
    assert release.manifest.threshold_basis in card


def test_same_data_and_seed_same_release(dataset: Path, trained: Trained, tmp_path: Path) -> None:
    again = train_release(dataset, tmp_path, FOLD, CHOICES)
    assert again.release.id == trained.release.id
    other = dataclasses.replace(CHOICES, recipe=dataclasses.replace(QUICK, seed=1))
    assert train_release(dataset, tmp_path, FOLD, other).release.id != trained.release.id


def test_labels_of_the_future_change_nothing(dataset: Path, trained: Trained, tmp_path: Path) -> None:
    """Without test days and later reports the network, thresholds and rules are the same ones."""
    past = tmp_path / "past"
    shutil.copytree(dataset, past)
    for file in past.glob("*/*.parquet"):
        if day_number(dt.date.fromisoformat(file.stem)) >= FOLD.test_start:
            file.unlink()
    found = train_release(past, tmp_path / "releases", FOLD, CHOICES)
    assert found.test is None
    for name in ("thresholds", "policy", "calibration"):
        assert getattr(found.release.manifest, name) == getattr(trained.release.manifest, name)
    assert found.release.module_path.read_bytes() == trained.release.module_path.read_bytes()


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (Fold(day_number(dt.date(2018, 4, 20))), "training days 2018-03-23 to 2018-03-29: no transactions on 7"),
        (Fold(day_number(dt.date(2018, 9, 1))), "no transactions on"),
        (Fold(day_number(dt.date(2018, 5, 1)), train_days=1, delay_days=0, test_days=1), "need at least 20"),
    ],
)
def test_too_little_data_is_named(dataset: Path, tmp_path: Path, fold: Fold, message: str) -> None:
    with pytest.raises(TooLittleData, match=message):
        train_release(dataset, tmp_path, fold, CHOICES)
    assert not list(tmp_path.iterdir())


def test_a_dataset_without_reports_is_named(dataset: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(dataset / "transactions", bare / "transactions")
    with pytest.raises(TooLittleData, match=r"0 of \d+ rows are positive.* import fraud reports"):
        train_release(bare, tmp_path / "releases", FOLD, CHOICES)
