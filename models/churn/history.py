"""Customers at cut-offs: their features, by the same kernel as in the batch job, and whether they came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from feature_store.dataset import DAY_US, load_sources
from feature_store.history import History, history_of, view_points
from feature_store.kernel import LAST_ID, Queries, view_features, window_sums
from numpy.typing import NDArray

from models.churn.features import ACTIVITY, HORIZON_DAYS, PLAN, POPULATION_DAYS, WINDOW_DAYS
from models.tabular.errors import TooLittleData


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The population at one cut-off, m customers.

    vectors float32 [m, F]; recency float64 [m], days since the last transaction; frequency int64 [m], transactions of
    the population's days; gone bool [m], no transaction in HORIZON_DAYS from the cut-off on; keys, the customers.
    """

    cutoff_day: int
    vectors: NDArray[np.float32]
    recency: NDArray[np.float64]
    frequency: NDArray[np.int64]
    gone: NDArray[np.bool_]
    keys: list[str]


class Activity:
    """All transactions that snapshots between two days need."""

    def __init__(self, dataset: Path | str, from_day: int, to_day: int) -> None:
        """Days since 1970; to_day is excluded. Raises feature_store.dataset.DatasetError, TooLittleData."""
        events, _ = load_sources(dataset, PLAN, from_day * DAY_US, to_day * DAY_US, None)
        if not events.num_rows:
            raise TooLittleData("churn: the dataset has no transactions in the days that are needed")
        self._history: History = history_of(PLAN, events, {})
        self._points, _ = view_points(ACTIVITY, self._history)
        self.first_day, self.last_day = (int(self._history.time_us[at] // DAY_US) for at in (0, -1))

    def snapshot(self, cutoff_day: int) -> Snapshot:
        """Who had a transaction in the POPULATION_DAYS before the day's midnight, and what became of them.

        `gone` means something only where the HORIZON_DAYS from the cut-off on were loaded.
        """
        cutoff_us = cutoff_day * DAY_US
        customers = self._history.entities[ACTIVITY.entity.name]
        time_us, code = self._history.time_us, customers.code
        past = (time_us < cutoff_us) & (time_us >= cutoff_us - POPULATION_DAYS * DAY_US)
        frequency = np.bincount(code[past], minlength=len(customers.keys))
        latest = np.zeros(len(customers.keys), dtype=np.int64)
        np.maximum.at(latest, code[past], time_us[past])
        after = (time_us >= cutoff_us) & (time_us < cutoff_us + HORIZON_DAYS * DAY_US)
        back = np.bincount(code[after], minlength=len(customers.keys)) > 0
        who = np.flatnonzero(frequency)
        # The cut-off is exclusive; windows include the moment that is asked for.
        queries = Queries(who, np.full(len(who), cutoff_us - 1), np.full(len(who), LAST_ID))
        sums = window_sums(self._points, queries, ACTIVITY.windows_us, ACTIVITY.delay_us)
        return Snapshot(
            cutoff_day,
            view_features(ACTIVITY, sums).astype(np.float32),
            (cutoff_us - latest[who]) / DAY_US,
            frequency[who].astype(np.int64),
            ~back[who],
            [customers.keys[c] for c in who.tolist()],
        )


def history_days() -> int:
    """How far back of a cut-off its snapshot looks."""
    return max(*WINDOW_DAYS, POPULATION_DAYS)


def stacked(snapshots: Sequence[Snapshot]) -> Snapshot:
    """All rows of several cut-offs, of the last one's name."""
    return Snapshot(
        snapshots[-1].cutoff_day,
        np.concatenate([s.vectors for s in snapshots]),
        np.concatenate([s.recency for s in snapshots]),
        np.concatenate([s.frequency for s in snapshots]),
        np.concatenate([s.gone for s in snapshots]),
        [key for s in snapshots for key in s.keys],
    )
