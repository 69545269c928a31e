"""Rows of warehouse files as Arrow tables: what is checked of them, and how several files become one order. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.history import id64_column
from feature_store.source_files import DAY_US, DatasetError, SourceFiles, times_us
from feature_store.warehouse_names import Coverage

PARTITION, OFFSET = "_partition", "_offset"
PLACES = (PARTITION, OFFSET)
"""Where an archived row lies in its log."""
PLACE_FIELDS = (pa.field(PARTITION, pa.int32()), pa.field(OFFSET, pa.int64()))
_NO_PLACE = -1


def needed_columns(source: SourceFiles, columns: Sequence[str] | None, whole: bool) -> list[str]:
    """What to read for `columns` (None: all); `whole`: rows have to be compared and put in order too.

    Raises DatasetError for a column that the source has not.
    """
    wanted = list(columns or source.schema.names)
    for name in wanted:
        if source.schema.get_field_index(name) < 0:
            raise DatasetError(f"{source.folder} has no column {name}; its columns are {_listed(source.schema.names)}")
    if not whole:
        return list(dict.fromkeys([*wanted, source.time_column]))
    own = [source.id_column, source.time_column] if source.unique_id else source.schema.names
    return list(dict.fromkeys([*wanted, *own, *PLACES]))


def check_schema(file: str, found: pa.Schema, right: pa.Schema, source: SourceFiles) -> None:
    """Raises DatasetError that names the file and the column that is missing or of another type."""
    needed = {source.id_column, source.time_column, *PLACES} if source.evolves else set(right.names)
    for field in right:
        if found.get_field_index(field.name) < 0:
            if field.name not in needed:
                continue
            raise DatasetError(
                f"{file}: column {field.name} ({field.type}) is missing; the columns are {_listed(found.names)}"
            )
        type_found = found.field(field.name).type
        if type_found != field.type and not (source.evolves and _an_earlier(type_found, field.type)):
            raise DatasetError(f"{file}: column {field.name} is {type_found}, must be {field.type}")


def as_now(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Columns of `schema`, some of which the table lacks in whole or in part: nulls there."""
    for field in schema:
        if table.schema.get_field_index(field.name) < 0:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def _an_earlier(found: pa.DataType, now: pa.DataType) -> bool:
    """Whether `now` is `found` with fields of structs added, if any."""
    if pa.types.is_list(found) and pa.types.is_list(now):
        return _an_earlier(found.value_type, now.value_type)
    if not (pa.types.is_struct(found) and pa.types.is_struct(now)):
        return bool(found == now)
    later = {field.name: field.type for field in now}
    return all(field.name in later and _an_earlier(field.type, later[field.name]) for field in found)


def check(file: str, table: pa.Table, source: SourceFiles, day_us: int, sorted_by_time: bool) -> None:
    """No missing values, times inside the day. Raises DatasetError that names file and column."""
    always = (source.id_column, source.time_column, *PLACES)
    for field in table.schema:
        may_miss = field.name in source.optional or (source.evolves and field.name not in always)
        nulls = 0 if may_miss else table.column(field.name).null_count
        if nulls:
            raise DatasetError(f"{file}: column {field.name} has {nulls} missing values; every row needs one")
    times = times_us(table, source.time_column)
    if len(times) and not (day_us <= times.min() and times.max() < day_us + DAY_US):
        raise DatasetError(f"{file}: column {source.time_column} has times outside the UTC day in the file's name")
    if sorted_by_time and (times[1:] < times[:-1]).any():
        raise DatasetError(f"{file}: rows are not sorted by {source.time_column}")


def kept(table: pa.Table, keep: Coverage) -> pa.Table:
    """The rows whose place is in `keep`."""
    partition, offset = _integers(table, PARTITION), _integers(table, OFFSET)
    mask = np.zeros(table.num_rows, dtype=np.bool_)
    for p, spans in keep.items():
        at = np.flatnonzero(partition == p)
        for first, last in spans:
            mask[at] |= (offset[at] >= first) & (offset[at] <= last)
    return table.filter(pa.array(mask))


def without_places(table: pa.Table) -> pa.Table:
    """With places that say that there is none: these rows come before all archived ones."""
    for field in PLACE_FIELDS:
        if table.schema.get_field_index(field.name) < 0:
            table = table.append_column(field, pa.array(np.full(table.num_rows, _NO_PLACE), field.type))
    return table


def once(tables: Sequence[pa.Table], source: SourceFiles, columns: Sequence[str]) -> pa.Table:
    """All rows of `tables` (columns as `needed_columns` says); where they have places: each event once, in order."""
    if not tables:
        return pa.schema([*source.schema, *PLACE_FIELDS]).empty_table().select(columns)
    table = pa.concat_tables(tables)
    if PARTITION not in columns or not table.num_rows:
        return table
    ids, times = id64_column(table.column(source.id_column)), times_us(table, source.time_column)
    partition, offset = _integers(table, PARTITION), _integers(table, OFFSET)
    if source.unique_id:
        rows = _first_of_each_id(ids, partition, offset)
    else:
        rows = _first_of_each_row(table.drop_columns(list(PLACES)), ids, times, partition, offset)
    rows = rows[np.lexsort((offset[rows], partition[rows], ids[rows], times[rows]))]
    return table.take(pa.array(rows))


def cut(table: pa.Table, source: SourceFiles, from_us: int | None, to_us: int | None) -> pa.Table:
    """The rows of a table in order of time with from_us <= time < to_us."""
    times = times_us(table, source.time_column)
    first = 0 if from_us is None else int(np.searchsorted(times, from_us, side="left"))
    last = len(times) if to_us is None else int(np.searchsorted(times, to_us, side="left"))
    return table.slice(first, max(0, last - first))


def _first_of_each_id(
    ids: NDArray[np.int64], partition: NDArray[np.int64], offset: NDArray[np.int64]
) -> NDArray[np.intp]:
    order = np.lexsort((offset, partition, ids))
    return order[np.flatnonzero(np.diff(ids[order], prepend=-1))]


def _first_of_each_row(
    table: pa.Table,
    ids: NDArray[np.int64],
    times: NDArray[np.int64],
    partition: NDArray[np.int64],
    offset: NDArray[np.int64],
) -> NDArray[np.intp]:
    """Rows are compared by all columns, and only where id and time are the same."""
    order = np.lexsort((offset, partition, times, ids))
    same = (np.diff(ids[order]) == 0) & (np.diff(times[order]) == 0)
    if not same.any():
        return order
    suspect = np.flatnonzero(np.concatenate((same, [False])) | np.concatenate(([False], same)))
    seen: set[str] = set()
    keep = np.ones(len(order), dtype=np.bool_)
    for at, row in zip(suspect.tolist(), table.take(pa.array(order[suspect])).to_pylist(), strict=True):
        content = repr(row)
        keep[at] = content not in seen
        seen.add(content)
    return order[keep]


def _integers(table: pa.Table, column: str) -> NDArray[np.int64]:
    return np.asarray(table.column(column).cast(pa.int64()).to_numpy(), dtype=np.int64)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
