"""The published protocol: which days train, which wait for their labels, which test, and whom the test leaves out.

    |-- train --|-- delay --|-- test --|          a label of the last training day is known when the test begins
    |--------- shifted by delay + test ---------| validation: the same, the latest whose labels are known by then

Source: Le Borgne et al., "Reproducible Machine Learning for Credit Card Fraud Detection", chapters 3 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from feature_store.dataset import DAY_US
from numpy.typing import NDArray

from models.fraud.errors import TooLittleData
from models.fraud.history import LabelledHistory, day_date
from models.fraud.metrics import Metrics, measure


@dataclass(frozen=True, slots=True)
class Fold:
    """Days since 1970; `test_start` is the first test day, and the moment at which training happens."""

    test_start: int
    train_days: int = 7
    delay_days: int = 7
    test_days: int = 7

    def __post_init__(self) -> None:
        for name in ("train_days", "delay_days", "test_days"):
            if getattr(self, name) < (0 if name == "delay_days" else 1):
                raise TooLittleData(f"{name}: must be at least {int(name != 'delay_days')}, is {getattr(self, name)}")

    @property
    def train_start(self) -> int:
        return self.train_end - self.train_days

    @property
    def train_end(self) -> int:
        return self.test_start - self.delay_days

    @property
    def test_end(self) -> int:
        return self.test_start + self.test_days

    @property
    def trained_at_us(self) -> int:
        """When this fold's model is trained: labels known later do not exist for it."""
        return self.test_start * DAY_US

    def validation(self) -> Fold:
        """The latest fold whose test labels are known when this one trains."""
        back = self.delay_days + self.test_days
        return Fold(self.test_start - back, self.train_days, self.delay_days, self.test_days)


def train_rows(history: LabelledHistory, fold: Fold) -> NDArray[np.int64]:
    """Indices of the training days' transactions. Raises TooLittleData."""
    _check_days(history, fold.train_start, fold.train_end, "training")
    return np.flatnonzero((history.day >= fold.train_start) & (history.day < fold.train_end))


def test_rows(history: LabelledHistory, fold: Fold) -> NDArray[np.int64]:
    """Indices of the test days' transactions of customers not known to be compromised. Raises TooLittleData.

    On a test day a customer is known to be compromised where a transaction of theirs since the first training day
    counted as fraud by the reports that had come when that day began.
    """
    _check_days(history, fold.test_start, fold.test_end, "test")
    kept = []
    since = history.day >= fold.train_start
    for day in range(fold.test_start, fold.test_end):
        known = np.unique(history.card[since & history.fraud_as_known(day * DAY_US)])
        today = np.flatnonzero(history.day == day)
        kept.append(today[~np.isin(history.card[today], known)])
    return np.concatenate(kept)


def measure_rows(
    history: LabelledHistory, rows: NDArray[np.int64], score: NDArray[np.floating], fraud: NDArray[np.bool_]
) -> Metrics:
    """The protocol's metrics over `rows`; `fraud` [n] are the labels to count by. Raises TooLittleData."""
    if not 0 < fraud[rows].sum() < len(rows):
        first, last = day_date(int(history.day[rows].min())), day_date(int(history.day[rows].max()))
        raise TooLittleData(f"{first} to {last}: {int(fraud[rows].sum())} frauds in {len(rows)} rows; need both kinds")
    return measure(history.day[rows], history.card[rows], fraud[rows], score)


def _check_days(history: LabelledHistory, start: int, end: int, purpose: str) -> None:
    missing = sorted(set(range(start, end)) - set(np.unique(history.day).tolist()))
    if missing:
        wanted = f"{day_date(start)} to {day_date(end - 1)}"
        days = ", ".join(str(day_date(day)) for day in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise TooLittleData(f"{purpose} days {wanted}: no transactions on {len(missing)} of them ({days})")
