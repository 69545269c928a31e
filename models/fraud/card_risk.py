"""What customers' and terminals' latest scores say of their next transaction: the risk that `card-risk` publishes.

    before the cut-off, 30 days     n scores of a customer or a terminal
    shrunken mean                   (strength * mean + sum of scores) / (strength + n)      Buehlmann credibility
    risk                            the share of frauds among next transactions that goes with it, calibrated

Scores are added up as whole numbers, so that a sum is the same in any order, here and in Spark. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from feature_store.dataset import DAY_US
from model_release.manifest import Prior
from model_release.odds import chances, powers
from numpy.typing import NDArray

from models.fraud.history import LabelledHistory
from models.fraud.thresholds import choose_thresholds
from models.tabular.log_odds import fit_log_odds, logit

JOB_NAME = "card-risk"
WINDOW_DAYS = 30
QUANTUM = 2.0**30
"""Scores are counted in whole parts of it; a sum of 8 million of them is still exact in float64."""
ENTITIES = ("customer", "terminal")
_STRENGTHS = (0.1, 1e6)


@dataclass(frozen=True, slots=True, eq=False)
class Pasts:
    """Of every transaction of some days its entity's scores of the 30 days before that day, int64 [m] each: how many,
    and their sum in parts of QUANTUM; `key` int64 [m] numbers the entities.
    """

    key: NDArray[np.int64]
    total: NDArray[np.int64]
    count: NDArray[np.int64]

    def means(self, mean: float, strength: float) -> NDArray[np.float64]:
        """Shrunken means float64 [m], as the batch job computes them."""
        return (strength * mean + self.total / QUANTUM) / (strength + self.count)

    def risks(self, prior: Prior) -> NDArray[np.float32]:
        """float32 [m]; NaN for an entity without a past, which the run does not have."""
        found = chances(prior.factor * powers(self.means(prior.mean, prior.strength), prior.sixteenths))
        return np.where(self.count > 0, found, np.float32(np.nan))


def quanta(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Scores float32 [n] in whole parts of QUANTUM, halves upwards."""
    return np.floor(scores.astype(np.float64) * QUANTUM + 0.5).astype(np.int64)


def pasts_of(history: LabelledHistory, entity: str, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> Pasts:
    """Pasts of the transactions `rows` (indices, by day), each at its day's midnight. `scores` float32 [n] of all."""
    key = history.keys[entity]
    parts = quanta(scores)
    total, count = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    size = int(key.max()) + 1
    for day in np.unique(history.day[rows]):
        end_us = int(day) * DAY_US
        first, last = np.searchsorted(history.time_us, [end_us - WINDOW_DAYS * DAY_US, end_us])
        past = key[first:last]
        # Sums of whole numbers below 2^53 are exact in float64.
        sums = np.bincount(past, parts[first:last], size).astype(np.int64)
        counts = np.bincount(past, minlength=size)
        today = np.flatnonzero(history.day[rows] == day)
        total[today], count[today] = sums[key[rows[today]]], counts[key[rows[today]]]
    return Pasts(key[rows], total, count)


def credibility(key: NDArray[np.int64], scores: NDArray[np.float32]) -> tuple[float, float]:
    """(mean, strength) of scores float32 [n] grouped by `key`: strength is their variance within groups over that
    between groups, so that the shrunken mean is the best linear estimate of a group's own mean.

    Source: Buehlmann and Straub, "Glaubwuerdigkeit fuer Schadensaetze", 1970, with their unbiased estimators.
    """
    _, group, count = np.unique(key, return_inverse=True, return_counts=True)
    values = scores.astype(np.float64)
    means = np.bincount(group, values) / count
    mean, n, groups = float(values.mean()), len(values), len(count)
    within = float(((values - means[group]) ** 2).sum()) / max(n - groups, 1)
    spread = float((count * (means - mean) ** 2).sum()) - (groups - 1) * within
    between = spread / max(n - float((count**2).sum()) / n, 1.0)
    low, high = _STRENGTHS
    strength = high if between <= 0 else min(max(within / between, low), high)
    return float(np.clip(round(mean, 9), 1e-9, 0.999)), round(strength, 6)


def fit_prior(
    entity: str,
    before: tuple[NDArray[np.int64], NDArray[np.float32]],
    pasts: Pasts,
    day: NDArray[np.int64],
    fraud: NDArray[np.bool_],
    review_budget: int,
    deny_precision: float,
) -> Prior | None:
    """The prior of one entity: mean and strength from `before` (keys and scores of the days before), calibration and
    thresholds on validation transactions with `pasts`, day int64 [m] and fraud bool [m].

    None where the past of an entity says nothing of its next transaction.
    """
    mean, strength = credibility(*before)
    means = pasts.means(mean, strength)
    (sixteenths,), factor = fit_log_odds(logit(means)[:, None], fraud)
    if not sixteenths:
        return None
    risk = chances(factor * powers(means, sixteenths))
    thresholds, basis = choose_thresholds(day, pasts.key, fraud, risk, review_budget, deny_precision)
    return Prior(
        entity=entity, mean=mean, strength=strength, factor=factor, sixteenths=sixteenths,
        thresholds=thresholds, threshold_basis=basis.replace("cards", f"{entity}s"),
    )  # fmt: skip


def risks_by_entity(pasts: Mapping[str, Pasts], priors: tuple[Prior, ...]) -> list[NDArray[np.float32]]:
    """Columns of risks in the order of the priors, NaN where the run would have none."""
    return [pasts[prior.entity].risks(prior) for prior in priors]
