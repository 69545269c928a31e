"""The dataset folder: card transactions and what was later reported about them, as Parquet files by UTC day.

    DATASET/transactions/<YYYY-MM-DD>.parquet    by day of event_time, sorted by (event_time, id)
    DATASET/fraud-reports/<YYYY-MM-DD>.parquet   by day of reported_at
    DATASET/dataset.json                         how it was made

Relies on Arrow and NumPy only. Files outside the asked range are not opened; those that are opened are checked: columns
and types, no missing values, times inside the file's day and in order. `dataset_writer` writes such folders.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

DAY_US = 86_400_000_000
DESCRIPTION = "dataset.json"
UNFINISHED = "UNFINISHED"
TIME_TYPE = pa.timestamp("us", tz="UTC")
_EPOCH = dt.date(1970, 1, 1)


class DatasetError(ValueError):
    """A dataset folder cannot be used as it is; the message names the file, the column and what would be right."""


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """Where one source lives in a dataset folder, and the columns its files have.

    `time_column` orders the rows and names the day of a file; `id_column` is the event's id.
    """

    folder: str
    id_column: str
    time_column: str
    schema: pa.Schema
    required: bool


def _columns(**types: pa.DataType) -> pa.Schema:
    return pa.schema(types)


TRANSACTIONS = SourceFiles(
    folder="transactions",
    id_column="transaction_id",
    time_column="event_time",
    schema=_columns(
        transaction_id=pa.string(),
        event_time=TIME_TYPE,
        customer_id=pa.string(),
        terminal_id=pa.string(),
        amount=pa.int64(),
        currency=pa.string(),
    ),
    required=True,
)
FRAUD_REPORTS = SourceFiles(
    folder="fraud-reports",
    id_column="transaction_id",
    time_column="reported_at",
    schema=_columns(
        transaction_id=pa.string(),
        reported_at=TIME_TYPE,
        fraud=pa.bool_(),
        scenario=pa.int32(),
    ),
    # Nobody has reported anything yet: a legal dataset.
    required=False,
)


def load_transactions(path: str | Path, from_us: int | None = None, to_us: int | None = None) -> pa.Table:
    """Transactions with from_us <= event_time < to_us, sorted by (event_time, id); columns as in `TRANSACTIONS`.

    An empty range gives a table of no rows. Raises DatasetError.
    """
    return load(path, TRANSACTIONS, from_us, to_us)


def load_fraud_reports(path: str | Path, until_us: int | None = None) -> pa.Table:
    """Reports with reported_at <= until_us (those known at that time), in order of reported_at; columns as in
    `FRAUD_REPORTS`. No reports at all give a table of no rows. Raises DatasetError.
    """
    return load(path, FRAUD_REPORTS, None, None if until_us is None else until_us + 1)


def load(path: str | Path, source: SourceFiles, from_us: int | None = None, to_us: int | None = None) -> pa.Table:
    """Rows of one source with from_us <= time < to_us, in time order. Raises DatasetError."""
    tables = []
    for day_us, file in day_files(path, source):
        if (from_us is None or day_us + DAY_US > from_us) and (to_us is None or day_us < to_us):
            tables.append(_cut(_read_day(file, day_us, source), source, from_us, to_us))
    return pa.concat_tables(tables) if tables else source.schema.empty_table()


def day_files(path: str | Path, source: SourceFiles) -> list[tuple[int, Path]]:
    """(first microsecond of the day, file) of one source, in time order. Raises DatasetError."""
    folder = Path(path) / source.folder
    if (Path(path) / UNFINISHED).exists():
        raise DatasetError(f"{path} is unfinished: the run that wrote it was stopped, or goes on; make it again")
    if not folder.is_dir():
        if source.required or not Path(path).is_dir():
            raise DatasetError(
                f"{path} is not a dataset folder: it has no folder {source.folder}/ "
                "(`trine data generate` and `trine data import` make one)"
            )
        return []
    files = []
    for file in folder.glob("[!.]*.parquet"):
        try:
            day = dt.date.fromisoformat(file.stem)
        except ValueError:
            raise DatasetError(f"{file}: a file's name is its UTC day, like 2024-05-31.parquet") from None
        files.append(((day - _EPOCH).days * DAY_US, file))
    if not files and source.required:
        raise DatasetError(f"{folder}: no files named like 2024-05-31.parquet")
    return sorted(files)


def day_name(day_us: int) -> str:
    """The UTC day of a time in microseconds, as files are named: 2024-05-31."""
    return (_EPOCH + dt.timedelta(days=day_us // DAY_US)).isoformat()


def times_us(table: pa.Table, column: str) -> NDArray[np.int64]:
    """A timestamp column as int64[n] microseconds since the epoch."""
    return np.asarray(table.column(column).cast(pa.int64()).to_numpy(), dtype=np.int64)


def truth(transactions: pa.Table, reports: pa.Table, known_at_us: int | None = None) -> NDArray[np.bool_]:
    """bool[n], aligned with `transactions`: what its latest report says, False where there is none.

    `known_at_us`: only reports with reported_at <= known_at_us count (labels as known then); None: all of them. Of two
    reports at the same microsecond the one that says fraud wins, so that order in the files does not matter.
    """
    if known_at_us is not None:
        reports = reports.filter(pa.array(times_us(reports, FRAUD_REPORTS.time_column) <= known_at_us))
    says_fraud = np.asarray(reports.column("fraud").to_numpy(), dtype=np.bool_)
    order = np.lexsort((says_fraud, times_us(reports, FRAUD_REPORTS.time_column)))
    ids = reports.column(FRAUD_REPORTS.id_column)
    distinct = pc.unique(ids)
    latest = np.zeros(len(distinct), dtype=np.bool_)
    # Assignment in order of time: the last one stays.
    latest[pc.index_in(ids, value_set=distinct).to_numpy()[order]] = says_fraud[order]
    found = pc.is_in(transactions.column(TRANSACTIONS.id_column), value_set=distinct.filter(pa.array(latest)))
    return np.asarray(found.to_numpy(), dtype=np.bool_)


def _read_day(file: Path, day_us: int, source: SourceFiles) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            _check_schema(file, parquet.schema_arrow, source.schema)
            table = parquet.read(columns=source.schema.names).select(source.schema.names)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{file}: not a readable Parquet file: {error}") from error
    for field in source.schema:
        if nulls := table.column(field.name).null_count:
            raise DatasetError(f"{file}: column {field.name} has {nulls} missing values; every row needs one")
    times = times_us(table, source.time_column)
    if len(times) and not (day_us <= times.min() and times.max() < day_us + DAY_US):
        raise DatasetError(f"{file}: column {source.time_column} has times outside the UTC day in the file's name")
    if (times[1:] < times[:-1]).any():
        raise DatasetError(f"{file}: rows are not sorted by {source.time_column}")
    return table.replace_schema_metadata(None).cast(source.schema)


def _check_schema(file: Path, found: pa.Schema, right: pa.Schema) -> None:
    for field in right:
        if found.get_field_index(field.name) < 0:
            raise DatasetError(
                f"{file}: column {field.name} ({field.type}) is missing; the columns are {_listed(found.names)}"
            )
        if (type_found := found.field(field.name).type) != field.type:
            raise DatasetError(f"{file}: column {field.name} is {type_found}, must be {field.type}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _cut(table: pa.Table, source: SourceFiles, from_us: int | None, to_us: int | None) -> pa.Table:
    times = times_us(table, source.time_column)
    first = 0 if from_us is None else int(np.searchsorted(times, from_us, side="left"))
    last = len(times) if to_us is None else int(np.searchsorted(times, to_us, side="left"))
    return table.slice(first, max(0, last - first))
