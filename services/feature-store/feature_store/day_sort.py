"""Sorts more rows than fit in memory into days: rows go to scratch files by UTC day, and come back a day at a time.

Memory: `rows_in_memory` rows while adding, one day's rows while reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.dataset import DAY_US, SourceFiles, times_us

ID64, ORDINAL = "_id64", "_ordinal"


class DaySort:
    """Rows of one source. `folder` is scratch space of its own; who made it removes it."""

    def __init__(self, source: SourceFiles, folder: Path, rows_in_memory: int = 2_000_000) -> None:
        self._source, self._folder, self._limit = source, folder, rows_in_memory
        self._files: dict[int, list[Path]] = defaultdict(list)
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0
        self._columns = pa.schema([*source.schema, pa.field(ID64, pa.int64()), pa.field(ORDINAL, pa.int64())])
        folder.mkdir(parents=True)

    def add(self, table: pa.Table, id64: NDArray[np.int64], ordinal: NDArray[np.int64]) -> None:
        """Rows with the source's columns in any order; `id64` of their ids; `ordinal` numbers them for `days`."""
        columns = [*(table.column(name) for name in self._source.schema.names), pa.array(id64), pa.array(ordinal)]
        self._waiting.append(pa.table(columns, schema=self._columns))
        self._rows_waiting += table.num_rows
        if self._rows_waiting >= self._limit:
            self._spill()

    def days(self, without: NDArray[np.int64] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """(first microsecond of the day, its rows sorted by (time, id)), days in order.

        `without`: ordinals of rows to leave out; a day that has no others is not there.
        """
        self._spill()
        for day in sorted(self._files):
            table = pa.concat_tables([_read(file) for file in self._files[day]])
            if without is not None and len(without):
                table = table.filter(pa.array(~np.isin(table.column(ORDINAL).to_numpy(), without)))
            if table.num_rows:
                order = np.lexsort((table.column(ID64).to_numpy(), times_us(table, self._source.time_column)))
                yield day * DAY_US, table.take(pa.array(order)).select(self._source.schema.names)

    def ids(self, ordinals: NDArray[np.int64]) -> dict[int, str]:
        """Ordinal → id of some rows."""
        found: dict[int, str] = {}
        self._spill()
        wanted = pa.array(ordinals, pa.int64())
        for file in (file for files in self._files.values() for file in files):
            table = _read(file)
            rows = table.filter(pc.is_in(table.column(ORDINAL), value_set=wanted))
            pairs = zip(rows.column(ORDINAL).to_pylist(), rows.column(self._source.id_column).to_pylist(), strict=True)
            found.update(pairs)
        return found

    def _spill(self) -> None:
        if not self._rows_waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._rows_waiting = [], 0
        day = times_us(table, self._source.time_column) // DAY_US
        order = np.argsort(day, kind="stable")
        table, day = table.take(pa.array(order)), day[order]
        edges = [0, *(np.flatnonzero(np.diff(day)) + 1).tolist(), len(day)]
        for begin, end in pairwise(edges):
            files = self._files[int(day[begin])]
            files.append(self._folder / f"{int(day[begin])}.{len(files)}.arrow")
            part = table.slice(begin, end - begin)
            with pa.ipc.new_file(files[-1], part.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as sink:
                sink.write_table(part)


def _read(file: Path) -> pa.Table:
    with pa.ipc.open_file(file) as source:
        return source.read_all()
