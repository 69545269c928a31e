"""Interactions as arrays: users and items numbered, values relative to what is typical of their kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feature_store.source_files import DAY_US, times_us
from feature_store.warehouse import Warehouse
from numpy.typing import NDArray

from models.recommender.errors import TooLittleData
from models.recommender.sources import INTERACTION_FILES


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """n interactions with a value above 0. user, item int64 [n]: places in the ids, which are sorted as texts.

    time_us int64 [n]; value float64 [n]: over `typical_values` of its kind, the mean of that kind.
    """

    user_ids: pa.Array[Any]
    item_ids: pa.Array[Any]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time_us: NDArray[np.int64]
    value: NDArray[np.float64]
    typical_values: dict[str, float]

    @property
    def pair(self) -> NDArray[np.int64]:
        """int64 [n]: one number for a user and an item."""
        return self.user * len(self.item_ids) + self.item

    @property
    def end_us(self) -> int:
        """The midnight after the last one."""
        return (int(self.time_us.max()) // DAY_US + 1) * DAY_US

    def where(self, chosen: NDArray[np.bool_]) -> Interactions:
        """Some of them; users and items keep their numbers."""
        return replace(
            self, user=self.user[chosen], item=self.item[chosen], time_us=self.time_us[chosen], value=self.value[chosen]
        )


def load_interactions(path: str | Path, from_us: int | None = None, to_us: int | None = None) -> Interactions:
    """`interactions_of` the `load_table` of these."""
    return interactions_of(load_table(path, from_us, to_us))


def load_table(path: str | Path, from_us: int | None = None, to_us: int | None = None) -> pa.Table:
    """Interactions of a dataset folder or warehouse with from_us <= time < to_us and a value above 0, by time.

    Raises feature_store.source_files.DatasetError, and TooLittleData where there are none.
    """
    columns = ["user_id", "item_id", "event_time", "kind", "value"]
    table = Warehouse(path).load(INTERACTION_FILES, from_us, to_us, columns)
    table = table.filter(pc.greater(table.column("value"), 0.0))
    if not table.num_rows:
        raise TooLittleData(f"{path}: no interactions with a value above 0 in the days asked for")
    return table


def interactions_of(table: pa.Table) -> Interactions:
    """From a table with the columns of `INTERACTION_FILES`, one row or more, all values above 0."""
    user_ids, user = _numbered(table.column("user_id"))
    item_ids, item = _numbered(table.column("item_id"))
    kinds, kind = _numbered(table.column("kind"))
    value = np.asarray(table.column("value").to_numpy(), dtype=np.float64)
    typical = np.bincount(kind, value) / np.bincount(kind)
    typical_values = dict(zip(kinds.to_pylist(), typical.tolist(), strict=True))
    return Interactions(
        user_ids, item_ids, user, item, times_us(table, "event_time"), value / typical[kind], typical_values
    )


def _numbered(column: pa.ChunkedArray[Any]) -> tuple[pa.Array[Any], NDArray[np.int64]]:
    """(the distinct texts, sorted; each row's place among them)."""
    distinct = column.unique()
    distinct = distinct.take(pc.sort_indices(distinct))
    return distinct, np.asarray(pc.index_in(column, value_set=distinct).to_numpy(), dtype=np.int64)
