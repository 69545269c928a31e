"""From transactions to a release: what `trine train churn` does.

cut-offs of a week's distance, the latest HORIZON_DAYS before the moment of training   -> the network
the same, another HORIZON_DAYS before, measured on the latest cut-off                  -> calibration
the moment of training, where the dataset goes on for HORIZON_DAYS                     -> the published metrics
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from model_release import Policy, Release, Thresholds, scoring_module
from model_release.exact_network import ExactNetwork
from model_release.writer import Draft, write_release
from numpy.typing import NDArray

from models.churn.baseline import RecencyFrequency
from models.churn.card import model_card
from models.churn.features import HORIZON_DAYS, PLAN, QUOTIENTS
from models.churn.history import Activity, Snapshot, history_days, stacked
from models.tabular.calibration import Calibration, fit_calibration
from models.tabular.errors import TooLittleData
from models.tabular.golden import golden_rows
from models.tabular.network import Shape, exact, logits
from models.tabular.ranking import auc_roc, average_precision
from models.tabular.training import Recipe, fit
from models.torchserve import HANDLER

STEP_DAYS = 7
THRESHOLDS = Thresholds(review=0.5, deny=0.9)
THRESHOLD_BASIS = "fixed: more likely gone than not, and nearly certainly gone"
MODEL, BASELINE = "network", "recency and frequency"
Figures = dict[str, dict[str, float | int]]


def churn_recipe(seed: int = 0) -> Recipe:
    """Small, and every row in every epoch: leaving is not rare."""
    return Recipe(Shape(members=4, hidden=(16,)), epochs=20, batch=256, dropout=0.1, keep=1.0, seed=seed)


@dataclass(frozen=True, slots=True)
class Choices:
    """`cutoffs`: how many past cut-offs the network is fitted on."""

    cutoffs: int = 4
    recipe: Recipe = field(default_factory=churn_recipe)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The release; by who says it, what was measured at the validation cut-off and, if there is one, at the test's."""

    release: Release
    validation: Figures
    test: Figures | None


def train_release(
    dataset: Path | str,
    releases: Path | str,
    cutoff_day: int,
    choices: Choices,
    advance: Callable[[float], None] = lambda _: None,
) -> Trained:
    """Trains at the beginning of `cutoff_day` (days since 1970). `advance` gets shares that add up to 2.

    Raises TooLittleData, feature_store.dataset.DatasetError, model_release.ReleaseError.
    """
    last = cutoff_day - HORIZON_DAYS
    final = [last - STEP_DAYS * i for i in range(choices.cutoffs)][::-1]
    trial = [day - HORIZON_DAYS for day in final]
    activity = Activity(dataset, trial[0] - history_days(), cutoff_day + HORIZON_DAYS)
    if activity.first_day >= trial[0] - HORIZON_DAYS or activity.last_day < cutoff_day - 1:
        raise TooLittleData(
            f"churn: transactions from {_date(trial[0] - HORIZON_DAYS)} to {_date(cutoff_day - 1)} are needed, found "
            f"{_date(activity.first_day)} to {_date(activity.last_day)}; take fewer --cutoffs, or a later --cutoff"
        )
    earlier, validation = stacked([activity.snapshot(day) for day in trial]), activity.snapshot(last)
    tried = _fit(earlier, choices.recipe, advance)
    logit = logits(tried, validation.vectors)
    if not 0 < validation.gone.sum() < len(validation.gone):
        raise TooLittleData(f"churn: at {_date(last)} {validation.gone.sum()} of {len(validation.gone)} have left")
    calibration = fit_calibration(logit, validation.gone)
    on_validation = compare(validation, calibration.probabilities(logit), RecencyFrequency(earlier))

    rows = stacked([activity.snapshot(day) for day in final])
    network = _fit(rows, choices.recipe, advance)
    test = None
    if activity.last_day >= cutoff_day + HORIZON_DAYS - 1:
        asked = activity.snapshot(cutoff_day)
        scores = calibration.probabilities(logits(network, asked.vectors))
        test = compare(asked, scores, RecencyFrequency(rows))
    training = {
        "cutoff": _date(cutoff_day),
        "cutoffs": [_date(day) for day in final],
        "validation": _date(last),
        "horizon_days": HORIZON_DAYS,
        "rows": len(rows.gone),
        "gone": int(rows.gone.sum()),
        "recipe": asdict(choices.recipe),
    }
    base = float(np.float32(rows.gone.mean()))
    draft = Draft(
        plan=PLAN,
        network=network.with_table(calibration.table()),
        golden_inputs=golden_rows(rows.vectors, rows.gone, choices.recipe.seed),
        model_card=model_card(training, on_validation, test, THRESHOLDS, THRESHOLD_BASIS),
        thresholds=THRESHOLDS,
        threshold_basis=THRESHOLD_BASIS,
        calibration={"method": "platt", **asdict(calibration), "fitted_on": "validation"},
        policy=Policy(unrecorded="refuse", base_score=base),
        metrics={
            "validation": on_validation[MODEL],
            "test": test and test[MODEL],
            "baseline": {"validation": on_validation[BASELINE], "test": test and test[BASELINE]},
        },
        training=training,
    )
    return Trained(write_release(releases, draft, HANDLER), on_validation, test)


def evaluate_release(release: Release, dataset: Path | str, cutoff_day: int) -> Figures:
    """The release beside the baseline, which is fitted on the cut-off HORIZON_DAYS before. Raises as `train_release`,
    also where the dataset does not go on for HORIZON_DAYS."""
    before = cutoff_day - HORIZON_DAYS
    activity = Activity(dataset, before - history_days(), cutoff_day + HORIZON_DAYS)
    if activity.last_day < cutoff_day + HORIZON_DAYS - 1 or activity.first_day > before - HORIZON_DAYS:
        raise TooLittleData(
            f"churn: transactions from {_date(before - HORIZON_DAYS)} to {_date(cutoff_day + HORIZON_DAYS - 1)} are "
            f"needed, found {_date(activity.first_day)} to {_date(activity.last_day)}"
        )
    asked = activity.snapshot(cutoff_day)
    scores = scoring_module.load(release.module_path)(asked.vectors)
    return compare(asked, scores, RecencyFrequency(activity.snapshot(before)))


def compare(rows: Snapshot, scores: NDArray[np.float32], baseline: RecencyFrequency) -> Figures:
    """Six digits each; a smaller Brier score is better. Raises TooLittleData where all or none have left."""
    if not 0 < rows.gone.sum() < len(rows.gone):
        raise TooLittleData(f"churn: {rows.gone.sum()} of {len(rows.gone)} customers have left; need both kinds")
    return {
        name: {
            "auc_roc": round(auc_roc(rows.gone, chance), 6),
            "average_precision": round(average_precision(rows.gone, chance), 6),
            "brier": round(float(((chance - rows.gone) ** 2).mean()), 6),
            "customers": len(rows.gone),
            "gone": int(rows.gone.sum()),
        }
        for name, chance in ((MODEL, scores.astype(np.float64)), (BASELINE, baseline.probability(rows)))
    }


def _fit(rows: Snapshot, recipe: Recipe, advance: Callable[[float], None]) -> ExactNetwork:
    try:
        fitted = fit(PLAN.features, rows.vectors, rows.gone, recipe, QUOTIENTS, advance)
    except TooLittleData as error:
        raise TooLittleData(f"{error}; positive are customers who left (trine data generate --churn-rate)") from error
    return exact(fitted.encoding, fitted.ensemble, Calibration(1.0, 0.0).table())


def _date(day: int) -> str:
    return str(date(1970, 1, 1) + timedelta(days=day))
