"""Measuring a release's fallback on days of a dataset: rules alone beside rules and the batch scores of each night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from model_release import Release, scoring_module

from models.fraud.card_risk import WINDOW_DAYS
from models.fraud.errors import TooLittleData
from models.fraud.evaluation import score_rows
from models.fraud.fallback import ScoredDays, measure_fallback
from models.fraud.history import day_date, load_history


def evaluate_fallback(release: Release, dataset: Path | str, from_day: int, to_day: int) -> dict[str, dict[str, Any]]:
    """`models.fraud.fallback.measure_fallback` over all transactions of from_day <= day < to_day (days since 1970).

    Batch scores are those of a run at each day's midnight. Any: JSON. Raises as `evaluation.evaluate_release`.
    """
    history = load_history(dataset, release.plan, from_day - WINDOW_DAYS, to_day)
    rows = np.flatnonzero(history.day >= from_day)
    if not 0 < history.fraud[rows].sum() < len(rows):
        raise TooLittleData(f"{day_date(from_day)} to {day_date(to_day - 1)}: need frauds and others, found one kind")
    scores = score_rows(scoring_module.load(release.module_path), history.vectors)
    days = ScoredDays.of(history, rows, scores)
    return measure_fallback(release.manifest.policy, release.manifest.thresholds, days, history.fraud)
