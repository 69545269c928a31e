"""The dataset folder: events and what later became known about them, as Parquet files by UTC day.

    DATASET/<source>/<YYYY-MM-DD>.parquet   events by day of their time, sorted by (time, id); labels by day of when
                                            they became known
    DATASET/dataset.json                    how it was made

Where a plan's sources live and which columns their files have follows from their definitions: `_` in a source's name is
`-` in its folder's, a time in microseconds (`event_time_us`) is a timestamp column without `_us`. Files may have more
columns than a plan needs; a model that writes them declares its own `SourceFiles`.

Relies on Arrow, NumPy and the definitions only. Files outside the asked range are not opened; those that are opened are
checked: columns and types, no missing values, times inside the file's day and in order. `dataset_writer` writes such
folders.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_store.definitions import FeaturePlan, LabelSource

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


def event_files(plan: FeaturePlan) -> SourceFiles:
    """The files of the events that a plan's requests carry, with the columns that its features need."""
    source = plan.source
    texts = dict.fromkeys([source.id, source.key, *(entity.key for entity in plan.entities)], pa.string())
    time_column = _time_column(source.time)
    columns = {**texts, time_column: TIME_TYPE, **dict.fromkeys(source.fields, pa.int64())}
    return SourceFiles(_folder(source.name), source.id, time_column, pa.schema(columns), required=True)


def label_files(label: LabelSource) -> SourceFiles:
    """The files of what became known about events, by day of when it did. There may be none yet."""
    known_at = _time_column(label.known_at)
    columns = {label.id: pa.string(), known_at: TIME_TYPE, label.value: pa.bool_()}
    return SourceFiles(_folder(label.name), label.id, known_at, pa.schema(columns), required=False)


def load_sources(
    path: str | Path, plan: FeaturePlan, from_us: int | None, to_us: int | None, known_before_us: int | None
) -> tuple[pa.Table, dict[str, pa.Table]]:
    """A plan's events with from_us <= time < to_us, and by label source the labels known before `known_before_us`.

    None: no limit on that side. Tables are in order of time and known time; columns as `event_files` and `label_files`
    say. Raises DatasetError.
    """
    events = load(path, event_files(plan), from_us, to_us)
    labels = {label.name: load(path, label_files(label), None, known_before_us) for label in plan.label_sources}
    return events, labels


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


def _folder(source: str) -> str:
    return source.replace("_", "-")


def _time_column(field: str) -> str:
    """Times are int64 microseconds in events (`event_time_us`) and timestamps in files (`event_time`)."""
    return field.removesuffix("_us")


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
