"""The files of the fraud model's dataset folders: card transactions, and what was later reported about them.

    DATASET/transactions/<YYYY-MM-DD>.parquet    by day of event_time, sorted by (event_time, id)
    DATASET/fraud-reports/<YYYY-MM-DD>.parquet   by day of reported_at

Folders, ids and times are what `features.PLAN` declares; the files have columns beyond what its features need.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feature_store.dataset import TIME_TYPE, SourceFiles, event_files, label_files, load, times_us
from numpy.typing import NDArray

from models.fraud.features import FRAUD_REPORTS, PLAN

_EVENTS, _LABELS = event_files(PLAN), label_files(FRAUD_REPORTS)

TRANSACTION_FILES = SourceFiles(
    _EVENTS.folder,
    _EVENTS.id_column,
    _EVENTS.time_column,
    pa.schema(
        {
            "transaction_id": pa.string(),
            "event_time": TIME_TYPE,
            "customer_id": pa.string(),
            "terminal_id": pa.string(),
            "amount": pa.int64(),
            "currency": pa.string(),
        }
    ),
    required=True,
)
FRAUD_REPORT_FILES = SourceFiles(
    _LABELS.folder,
    _LABELS.id_column,
    _LABELS.time_column,
    pa.schema({"transaction_id": pa.string(), "reported_at": TIME_TYPE, "fraud": pa.bool_(), "scenario": pa.int32()}),
    # Nobody has reported anything yet: a legal dataset.
    required=False,
    unique_id=False,
)


def load_transactions(path: str | Path, from_us: int | None = None, to_us: int | None = None) -> pa.Table:
    """Transactions with from_us <= event_time < to_us, sorted by (event_time, id); columns as in `TRANSACTION_FILES`.

    An empty range gives a table of no rows. Raises feature_store.dataset.DatasetError.
    """
    return load(path, TRANSACTION_FILES, from_us, to_us)


def load_fraud_reports(path: str | Path, until_us: int | None = None) -> pa.Table:
    """Reports with reported_at <= until_us (those known at that time), in order of reported_at; columns as in
    `FRAUD_REPORT_FILES`. No reports at all give a table of no rows. Raises feature_store.dataset.DatasetError.
    """
    return load(path, FRAUD_REPORT_FILES, None, None if until_us is None else until_us + 1)


def truth(transactions: pa.Table, reports: pa.Table, known_at_us: int | None = None) -> NDArray[np.bool_]:
    """bool[n], aligned with `transactions`: what its latest report says, False where there is none.

    `known_at_us`: only reports with reported_at <= known_at_us count (labels as known then); None: all of them. Of two
    reports at the same microsecond the one that says fraud wins, so that order in the files does not matter.
    """
    if known_at_us is not None:
        reports = reports.filter(pa.array(times_us(reports, "reported_at") <= known_at_us))
    says_fraud = np.asarray(reports.column("fraud").to_numpy(), dtype=np.bool_)
    order = np.lexsort((says_fraud, times_us(reports, "reported_at")))
    ids = reports.column("transaction_id")
    distinct = pc.unique(ids)
    latest = np.zeros(len(distinct), dtype=np.bool_)
    # Assignment in order of time: the last one stays.
    latest[pc.index_in(ids, value_set=distinct).to_numpy()[order]] = says_fraud[order]
    found = pc.is_in(transactions.column("transaction_id"), value_set=distinct.filter(pa.array(latest)))
    return np.asarray(found.to_numpy(), dtype=np.bool_)
