"""What a warehouse keeps of one source: its folder, columns, id and time. Relies on Arrow and the definitions only.

Where a plan's sources live and which columns their files have follows from their definitions: `_` in a source's name is
`-` in its folder's, a time in microseconds (`event_time_us`) is a timestamp column without `_us`. Files may have more
columns than a plan needs; a model that writes them declares its own `SourceFiles`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
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
    """Where one source lives in a warehouse, and the columns its files have.

    `time_column` orders the rows and names the day of a file; `id_column` is the event's id. `required`: without files
    it is no warehouse of the caller's. `unique_id`: an id is one event, and the first row of it counts; otherwise
    (reports that correct each other) only rows equal in all these columns are repeats. `optional`: columns in which
    values may be missing. `evolves`: the columns are a message's; files written before it gained a field lack that
    column, or that field of a struct, and read as if no value had been set (null).
    """

    folder: str
    id_column: str
    time_column: str
    schema: pa.Schema
    required: bool
    unique_id: bool = True
    optional: tuple[str, ...] = ()
    evolves: bool = False


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
    return SourceFiles(_folder(label.name), label.id, known_at, pa.schema(columns), required=False, unique_id=False)


def day_name(day_us: int) -> str:
    """The UTC day of a time in microseconds, as files are named: 2024-05-31."""
    return (_EPOCH + dt.timedelta(days=day_us // DAY_US)).isoformat()


def day_of(name: str) -> int | None:
    """The first microsecond of a day named like 2024-05-31; None for another name."""
    try:
        return (dt.date.fromisoformat(name) - _EPOCH).days * DAY_US if len(name) == 10 else None
    except ValueError:
        return None


def times_us(table: pa.Table, column: str) -> NDArray[np.int64]:
    """A timestamp column as int64[n] microseconds since the epoch."""
    return np.asarray(table.column(column).cast(pa.int64()).to_numpy(), dtype=np.int64)


def _folder(source: str) -> str:
    return source.replace("_", "-")


def _time_column(field: str) -> str:
    """Times are int64 microseconds in events (`event_time_us`) and timestamps in files (`event_time`)."""
    return field.removesuffix("_us")
