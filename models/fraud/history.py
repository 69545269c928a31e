"""What training and evaluation look at: feature vectors, labels and when each label became known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feature_store.dataset import DAY_US, times_us
from feature_store.definitions import FeaturePlan
from feature_store.offline import compute_features
from numpy.typing import NDArray

from models.fraud.sources import load_fraud_reports, truth

EPOCH = date(1970, 1, 1)


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return (day - EPOCH).days


def day_date(number: int) -> date:
    """The inverse of `day_number`."""
    return EPOCH + timedelta(days=number)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledHistory:
    """Transactions of some days in order of (time, id), with n rows.

    vectors float32 [n, F]; time_us int64 [n]; day int64 [n], days since 1970; card int64 [n], a number per customer;
    keys: by entity of the plan int64 [n], a number per key; fraud bool [n], what the latest report over all time says;
    own: how many features, the first ones, are of the transaction itself.
    """

    features: tuple[str, ...]
    vectors: NDArray[np.float32]
    time_us: NDArray[np.int64]
    day: NDArray[np.int64]
    card: NDArray[np.int64]
    keys: Mapping[str, NDArray[np.int64]]
    fraud: NDArray[np.bool_]
    own: int
    _ids: pa.Table
    _reports: pa.Table

    def fraud_as_known(self, at_us: int) -> NDArray[np.bool_]:
        """bool [n]: labels as somebody knew them at `at_us`."""
        return truth(self._ids, self._reports, known_at_us=at_us)


def load_history(dataset: Path | str, plan: FeaturePlan, from_day: int, to_day: int) -> LabelledHistory:
    """Transactions of days from_day <= day < to_day. Raises feature_store.dataset.DatasetError."""
    table = compute_features(plan, dataset, from_day * DAY_US, to_day * DAY_US)
    reports = load_fraud_reports(dataset)
    time_us = times_us(table, "event_time")
    columns = [table.column(name).to_numpy().astype(np.float32) for name in plan.features]
    ids = table.select(["transaction_id"])
    return LabelledHistory(
        features=plan.features,
        vectors=np.ascontiguousarray(np.column_stack(columns)),
        time_us=time_us,
        day=time_us // DAY_US,
        card=_numbers(table.column("customer_id")),
        keys={entity.name: _numbers(table.column(entity.key)) for entity in plan.entities},
        fraud=truth(ids, reports),
        own=len(plan.request_features),
        _ids=ids,
        _reports=reports,
    )


def _numbers(keys: pa.ChunkedArray) -> NDArray[np.int64]:
    """From 1 on, in the keys' order as texts."""
    return np.asarray(pc.rank(keys, tiebreaker="dense").to_numpy(), dtype=np.int64)
