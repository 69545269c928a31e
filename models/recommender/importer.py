"""Makes a dataset folder of a user's own interactions: all of it checked, nothing dropped silently.

As `models.fraud.importer`: every file is read, checked and sorted into days on disk; then, if the user can live with
what was found, the days are written. MovieLens' `u.data` (tab-separated, no first line) and `ratings.csv` are known.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feature_store.dataset_writer import DatasetWriter
from feature_store.day_sort import DaySort
from feature_store.ids import id64_array
from feature_store.source_files import TIME_TYPE
from numpy.typing import NDArray

from models.importing.bad_rows import BadRows, RowCheck
from models.importing.columns import TimeUnit, require_delimiter, require_fields, resolve
from models.importing.errors import BadRowsError, SourceError
from models.importing.numbers import numbers
from models.importing.repeated import RepeatedIds
from models.importing.source_files import SourceBatch, batches, source_files
from models.importing.text import identifiers, ids64
from models.importing.times import times_us
from models.recommender.sources import INTERACTION_FILES

MADE_BY = "trine data import --kind interactions"
FIELDS = ("user_id", "item_id", "event_time")
OPTIONAL = ("kind", "value", "interaction_id")
RECOGNISED = {
    "user_id": ("userId", "user"),
    "item_id": ("itemId", "movieId", "item"),
    "event_time": ("timestamp",),
    "value": ("rating",),
}
MOVIELENS, MOVIELENS_COLUMNS = "u.data", ("user_id", "item_id", "rating", "timestamp")
MOST_VALUE = 1e9
FROM_US = 315_532_800_000_000
"""1980: MovieLens begins in 1997, before what transactions may."""


@dataclass(frozen=True, slots=True)
class InteractionOptions:
    """How a user's files are to be read.

    columns: field → column, for names that are not recognised. kind: of rows without a kind; empty: `rating` where
    there are values, else `view`. time_unit: what whole numbers as times count since 1970-01-01 UTC; seconds in a
    column called `timestamp`, otherwise they are refused without it. delimiter: of CSV files.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    time_unit: TimeUnit | None = None
    delimiter: str = ","
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        require_fields(self.columns, (*FIELDS, *OPTIONAL))
        require_delimiter(self.delimiter)


def import_interactions(
    source: str | Path,
    out: str | Path,
    options: InteractionOptions,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Writes the dataset folder `out` and returns its description (as in dataset.json).

    `source`: a Parquet or CSV file or a folder of them. `advance` is called with rows read. Raises SourceError (a file
    or column that cannot be used), BadRowsError (rows that cannot be used, unless options.skip_bad_rows) and
    DatasetError (`out` is taken); nothing is at `out` then that was not before.
    """
    with DatasetWriter(out, overwrite) as writer:
        reading = _Reading(options, writer.folder / "scratch", advance)
        files = source_files(Path(source), also=(MOVIELENS,))
        for file in files:
            reading.read(file)
        repeated = reading.refuse_repeated()
        if reading.bad_rows.total and not options.skip_bad_rows:
            raise BadRowsError(reading.bad_rows)
        rows = 0
        kinds: Counter[str] = Counter()
        people, things = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        for day_us, table in reading.rows.days(repeated):
            writer.write_day(INTERACTION_FILES, day_us, table)
            rows += table.num_rows
            kinds.update({one["values"]: one["counts"] for one in table.column("kind").value_counts().to_pylist()})
            people = np.union1d(people, _ids64(table.column("user_id")))
            things = np.union1d(things, _ids64(table.column("item_id")))
        if not rows:
            raise SourceError(f"{source}: no row that can be used")
        shutil.rmtree(writer.folder / "scratch")
        description: dict[str, object] = {
            "made_by": MADE_BY,
            "sources": [file.name for file in files],
            "options": asdict(options),
            "interactions": rows,
            "users": len(people),
            "items": len(things),
            "kinds": dict(sorted(kinds.items())),
            "bad_rows": reading.bad_rows.to_json(),
        }
        return writer.finish(description)


class _Reading:
    """The first pass: what was read so far, sorted into days on disk, and what was wrong with it."""

    def __init__(self, options: InteractionOptions, scratch: Path, advance: Callable[[int], None]) -> None:
        self._options, self._advance = options, advance
        self.bad_rows = BadRows()
        self.rows = DaySort(INTERACTION_FILES, scratch)
        self._seen = RepeatedIds()
        self._own_ids = True
        self._unit: TimeUnit | None = None

    def read(self, file: Path) -> None:
        options = self._options

        def columns(name: str, present: list[str]) -> dict[str, str]:
            found = resolve(name, present, options.columns, FIELDS, OPTIONAL, RECOGNISED)
            self._unit = options.time_unit or ("s" if found["event_time"] == "timestamp" else None)
            self._own_ids &= "interaction_id" in found
            return found

        self._seen.begin(file.name)
        movielens = file.name == MOVIELENS
        delimiter, names = ("\t", MOVIELENS_COLUMNS) if movielens else (options.delimiter, None)
        for batch in batches(file, columns, delimiter, self.bad_rows, names):
            self._take(batch)
            self._advance(batch.columns.num_rows)

    def refuse_repeated(self) -> NDArray[np.int64]:
        """Ordinals of rows that were there before, now among the bad rows."""
        what, right = "interaction_id", "unique in the whole dataset"
        if not self._own_ids:
            what, right = "row", "one user, item, time and kind only once in the whole dataset"
        return self._seen.refuse(what, right, self.bad_rows, self.rows.ids)

    def _take(self, batch: SourceBatch) -> None:
        rows = batch.columns.num_rows
        check = RowCheck(self.bad_rows, batch.file, batch.first_row, rows)
        column = dict(zip(batch.columns.schema.names, batch.columns.columns, strict=True))
        users = identifiers(column["user_id"], "user_id", check)
        items = identifiers(column["item_id"], "item_id", check)
        times = times_us(column["event_time"], "event_time", self._unit, check, FROM_US)
        value = numbers(column["value"], "value", MOST_VALUE, check) if "value" in column else np.ones(rows)
        if "kind" in column:
            kinds = identifiers(column["kind"], "kind", check)
        else:
            kinds = pa.repeat(pa.scalar(self._options.kind or ("rating" if "value" in column else "view")), rows)
        own = identifiers(column["interaction_id"], "interaction_id", check) if "interaction_id" in column else None

        usable = ~check.bad
        good = pa.array(np.flatnonzero(usable))
        users, items, kinds, times = users.take(good), items.take(good), kinds.take(good), times[usable]
        id64 = np.full(rows, -1, dtype=np.int64)
        id64[usable] = _derived_ids(users, items, times, kinds) if own is None else ids64(own.take(good))
        ids = pa.array(id64[usable]).cast(pa.string()) if own is None else own.take(good)
        ordinal = self._seen.add(id64)
        columns = [ids, users, items, pa.array(times).cast(TIME_TYPE), kinds, pa.array(value[usable])]
        self.rows.add(pa.table(columns, schema=INTERACTION_FILES.schema), id64[usable], ordinal[usable])


# Any: string columns.
def _derived_ids(
    users: pa.Array[Any], items: pa.Array[Any], times: NDArray[np.int64], kinds: pa.Array[Any]
) -> NDArray[np.int64]:
    """Ids of interactions that have none, int64[n]: 59 bits of a hash of what makes each one what it is.

    Finalizer of SplitMix64 (Steele, Lea, Flood, 2014) over one part after the other. Among 10 million interactions two
    have the same id with a probability of 1 in 10,000.
    """
    hashed = np.zeros(len(times), dtype=np.uint64)
    encoded = kinds.dictionary_encode()
    names = id64_array(encoded.dictionary.to_pylist()) if len(kinds) else np.empty(0, dtype=np.int64)
    kind = names[encoded.indices.to_numpy()]
    for part in (ids64(users), ids64(items), times, kind):
        hashed = (hashed ^ part.view(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashed ^= hashed >> np.uint64(31)
    return (hashed >> np.uint64(5)).astype(np.int64)


def _ids64(column: pa.ChunkedArray[Any]) -> NDArray[np.int64]:
    return np.unique(ids64(column.unique()))
