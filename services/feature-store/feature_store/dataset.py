"""What models, features and rebuild read: events and labels of a dataset folder or warehouse, in order of time.

    DATASET/<source>/<YYYY-MM-DD>.parquet   events by day of their time, sorted by (time, id); labels by day of when
                                            they became known
    DATASET/dataset.json                    how it was made

`source_files` says what a source's files have, `warehouse` reads them (archived ones too), `dataset_writer` writes such
folders.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from feature_store.definitions import FeaturePlan
from feature_store.source_files import (
    DAY_US,
    DESCRIPTION,
    TIME_TYPE,
    UNFINISHED,
    DatasetError,
    SourceFiles,
    day_name,
    event_files,
    label_files,
    times_us,
)
from feature_store.warehouse import Warehouse

__all__ = [
    "DAY_US",
    "DESCRIPTION",
    "TIME_TYPE",
    "UNFINISHED",
    "DatasetError",
    "SourceFiles",
    "day_name",
    "event_files",
    "label_files",
    "load",
    "load_sources",
    "times_us",
]


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
    return Warehouse(path).load(source, from_us, to_us)
