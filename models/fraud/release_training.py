"""From a dataset to an immutable release: what `trine train fraud` does.

validation fold (labels as known when it trained)  -> fit, calibrate, choose thresholds, choose and measure rules
training days   (labels as known at test start)    -> fit anew: this network is released
test days, where the dataset has them              -> the published metrics

What answers without the model is fitted on the validation days too, and measured on the test days.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from feature_store.dataset import DAY_US
from feature_store.warehouse import Warehouse
from model_release import Release
from model_release.exact_network import ExactNetwork
from model_release.writer import Draft, write_release
from numpy.typing import NDArray

from models.fraud.card import model_card
from models.fraud.card_risk import WINDOW_DAYS
from models.fraud.errors import TooLittleData
from models.fraud.evaluation import Evaluation, evaluate
from models.fraud.fallback import ScoredDays, fit_batch_policy, measure_fallback
from models.fraud.features import PLAN, QUOTIENTS
from models.fraud.history import LabelledHistory, day_date, load_history
from models.fraud.protocol import Fold, test_rows, train_rows
from models.fraud.rules import Sample, measure_rules
from models.fraud.sources import TRANSACTION_FILES
from models.fraud.thresholds import choose_thresholds
from models.tabular.calibration import Calibration, fit_calibration
from models.tabular.golden import golden_rows
from models.tabular.network import exact, logits
from models.tabular.training import Recipe, fit
from models.torchserve import HANDLER


@dataclass(frozen=True, slots=True)
class Choices:
    """What a user decides. `review_budget`: cards a day; `deny_precision`: share of frauds among what is denied."""

    review_budget: int = 100
    deny_precision: float = 0.9
    unrecorded: Literal["answer", "refuse"] = "refuse"
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The release and how it did; `test` is None where the dataset ends before the test days do."""

    release: Release
    validation: Evaluation
    test: Evaluation | None

    @property
    def fallback(self) -> dict[str, Any]:
        """Figures of rules alone, and with batch scores, by kind of days (see `models.fraud.fallback`); Any: JSON."""
        found: Any = self.release.manifest.metrics["fallback"]
        return dict(found)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A network whose table is that of an uncalibrated logistic, and its logits of `rows` (indices, int64 [m])."""

    network: ExactNetwork
    rows: NDArray[np.int64]
    logit: NDArray[np.float64]


def train_release(
    dataset: Path | str,
    releases: Path | str,
    fold: Fold,
    choices: Choices,
    advance: Callable[[float], None] = lambda _: None,
) -> Trained:
    """Trains for `fold` and writes the release. `advance` gets shares of the work, which add up to 2.

    Raises:
        TooLittleData: days or labels are missing; the message names which.
        feature_store.dataset.DatasetError: the dataset cannot be read.
        model_release.ReleaseError: the folder of a release of this content is there and damaged.
    """
    earlier = fold.validation()
    tested = _has_days_until(dataset, fold.test_end)
    first = min(earlier.train_start, earlier.test_start - WINDOW_DAYS)
    history = load_history(dataset, PLAN, first, fold.test_end if tested else fold.test_start)
    known = history.fraud_as_known(fold.trained_at_us)

    held_out = test_rows(history, earlier)
    trial = fit_fold(history, earlier, held_out, choices.recipe, advance)
    if not known[held_out].any():
        raise TooLittleData(f"validation days from {day_date(earlier.test_start)}: no fraud reported until training")
    calibration = fit_calibration(trial.logit, known[held_out])
    scores = calibration.probabilities(trial.logit)
    thresholds, basis = choose_thresholds(
        history.day[held_out],
        history.card[held_out],
        known[held_out],
        scores,
        choices.review_budget,
        choices.deny_precision,
    )
    validation = evaluate(history, held_out, scores, known, thresholds)

    rows = train_rows(history, fold)
    judged = test_rows(history, fold) if tested else np.zeros(0, dtype=np.int64)
    final = fit_fold(history, fold, judged, choices.recipe, advance)
    test = None
    if tested:
        test = evaluate(history, judged, calibration.probabilities(final.logit), history.fraud, thresholds)
    before = train_rows(history, earlier)
    # All of them: rules answer for customers known to be compromised too.
    after = np.flatnonzero((history.day >= earlier.test_start) & (history.day < earlier.test_end))
    policy = measure_rules(
        PLAN.features,
        Sample(history.vectors[before], history.fraud_as_known(earlier.trained_at_us)[before]),
        Sample(history.vectors[after], known[after]),
        choices.deny_precision,
        choices.unrecorded,
    )
    days = ScoredDays.of(history, after, scores_of(trial.network, calibration, history))
    policy = fit_batch_policy(policy, thresholds, days, known, choices.review_budget, choices.deny_precision)
    without_model = measure_fallback(policy, thresholds, days, known)
    without_model_after = None
    if tested:
        all_judged = np.flatnonzero(history.day >= fold.test_start)
        days = ScoredDays.of(history, all_judged, scores_of(final.network, calibration, history))
        without_model_after = measure_fallback(policy, thresholds, days, history.fraud)

    training = {
        "train": _days(fold.train_start, fold.train_end),
        "delay_days": fold.delay_days,
        "validation_train": _days(earlier.train_start, earlier.train_end),
        "validation": _days(earlier.test_start, earlier.test_end),
        "test": _days(fold.test_start, fold.test_end) if tested else None,
        "labels_known_at": str(day_date(fold.test_start)),
        "transactions": len(rows),
        "frauds": int(known[rows].sum()),
        "recipe": asdict(choices.recipe),
    }
    metrics = {
        "validation": validation.summary(),
        "test": test.summary() if test else None,
        "fallback": {"validation": without_model, "test": without_model_after},
    }
    draft = Draft(
        plan=PLAN,
        network=final.network.with_table(calibration.table()),
        golden_inputs=golden_rows(history.vectors[rows], known[rows], choices.recipe.seed),
        model_card=model_card(training, metrics, thresholds, basis, policy),
        thresholds=thresholds,
        threshold_basis=basis,
        calibration={"method": "platt", **asdict(calibration), "fitted_on": "validation"},
        policy=policy,
        metrics=metrics,
        training=training,
    )
    return Trained(write_release(releases, draft, HANDLER), validation, test)


def fit_fold(
    history: LabelledHistory,
    fold: Fold,
    judged: NDArray[np.int64],
    recipe: Recipe,
    advance: Callable[[float], None] = lambda _: None,
) -> Fit:
    """Fits on the fold's training days, with labels as known when its test begins, and judges `judged`."""
    rows = train_rows(history, fold)
    known = history.fraud_as_known(fold.trained_at_us)
    try:
        fitted = fit(history.features, history.vectors[rows], known[rows], recipe, QUOTIENTS, advance)
    except TooLittleData as error:
        raise TooLittleData(f"{error}; positive are frauds: take more --train-days, or import fraud reports") from error
    network = exact(fitted.encoding, fitted.ensemble, Calibration(1.0, 0.0).table())
    return Fit(network, judged, logits(network, history.vectors[judged]))


def scores_of(network: ExactNetwork, calibration: Calibration, history: LabelledHistory) -> NDArray[np.float32]:
    """float32 [n]: every transaction of the history, scored as the release with this calibration would."""
    return calibration.probabilities(logits(network, history.vectors))


def _has_days_until(dataset: Path | str, end_day: int) -> bool:
    return bool(Warehouse(dataset).days(TRANSACTION_FILES)[-1] // DAY_US >= end_day - 1)


def _days(start: int, end: int) -> list[str]:
    """First and last day."""
    return [str(day_date(start)), str(day_date(end - 1))]
