"""Users' weighted histories, the user tower's input: the same in training, evaluation and nightly runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from feature_store.source_files import DAY_US
from model_release.manifest import History
from numpy.typing import NDArray

from models.recommender.interactions import Interactions

FULL_WEIGHT = 1024
LEAST_SHARE, MOST_SHARE = 0.25, 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Histories:
    """n users' items, each once: user k's are items[starts[k] : starts[k + 1]], the last one's go to the end.

    items int64 [m], ascending for each user; weights int64 [m], 0 to 2048 (0: seen, but not liked); starts int64 [n].
    """

    items: NDArray[np.int64]
    weights: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts, append=len(self.items))

    @property
    def user(self) -> NDArray[np.int64]:
        """int64 [m]: whose each item is."""
        return np.repeat(np.arange(len(self.starts)), self.lengths)

    def of(self, users: NDArray[np.int64]) -> Histories:
        """Of some users, in this order."""
        lengths = self.lengths[users]
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(self.starts[users] - starts, lengths) + np.arange(int(lengths.sum()))
        return Histories(self.items[rows], self.weights[rows], starts)


def history_rule(half_life_days: float | None, typical_values: dict[str, float]) -> History:
    """Weights that halve every so many days (None: never); values count where typical ones are given."""
    ages = np.arange(1 if half_life_days is None else int(half_life_days * 10) + 1)
    weights = np.maximum(np.rint(FULL_WEIGHT * 0.5 ** (ages / (half_life_days or 1.0))), 1).astype(np.int64)
    return History(age_weights=tuple(weights.tolist()), typical_values=typical_values)


def weigh(rule: History, age_days: NDArray[np.int64], relative_value: NDArray[np.float64]) -> NDArray[np.int64]:
    """Weights int64 [n], as `History` says; 0 for values of 0.

    Values are relative to the typical one, 1 where none counts.
    """
    table = np.array(rule.age_weights, dtype=np.int64)
    aged = table[np.clip(age_days, 0, len(table) - 1)]
    weighed = np.floor(aged * np.clip(relative_value, LEAST_SHARE, MOST_SHARE)).astype(np.int64)
    return np.where(relative_value > 0, np.maximum(weighed, 1), 0)


def group(users: int, user: NDArray[np.int64], item: NDArray[np.int64], weight: NDArray[np.int64]) -> Histories:
    """Histories of users 0 to `users` - 1; of several rows of a user and an item the weightiest counts."""
    order = np.lexsort((-weight, item, user))
    user, item, weight = user[order], item[order], weight[order]
    first = np.ones(len(user), dtype=np.bool_)
    first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return Histories(item[first], weight[first], np.searchsorted(user[first], np.arange(users)))


def histories_of(interactions: Interactions, rule: History, cutoff_us: int) -> Histories:
    """All users' histories as of a cut-off; later interactions count as of age 0."""
    age = (cutoff_us - interactions.time_us) // DAY_US
    value = interactions.value if rule.typical_values else np.ones(len(age))
    weight = weigh(rule, age, value)
    return group(len(interactions.user_ids), interactions.user, interactions.item, weight)
