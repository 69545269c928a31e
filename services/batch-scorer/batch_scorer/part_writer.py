"""What executors do with a partition's rows: write them as one part of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feature_store.warehouse_store import WarehouseStore

from batch_scorer.bundles import HASH, rows_of
from batch_scorer.distributions import distribution_of
from batch_scorer.errors import JobError, StorageError
from batch_scorer.history import BLOCK
from batch_scorer.job import KEY

#: What a part says of itself to the driver, for Spark: file, rows, bytes, rows whose key another has,
#: distributions by output (JSON).
PART_COLUMNS = "file string, rows long, bytes long, duplicates long, distributions string"
_PART_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "rows": pa.int64(),
        "bytes": pa.int64(),
        "duplicates": pa.int64(),
        "distributions": pa.string(),
    }
)


@dataclass(frozen=True, slots=True)
class PartWriter:
    """Writes one partition as one part, sorted by block; the same file again if the task is tried again.

    Rows come in bundles; `schema` is of the key and the outputs.
    """

    warehouse: str
    folder: str
    schema: pa.Schema
    blocks: int

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        rows = rows_of(batches, self.schema)
        if rows is None:
            return
        table, duplicates = by_block(rows, self.blocks)
        keys = table.column(KEY)
        if keys.null_count:
            raise JobError(f"column {KEY}: {keys.null_count} rows have none; each row needs one")
        file = f"part-{context.partitionId():05d}.parquet"
        store = WarehouseStore(self.warehouse)
        try:
            size = store.write_table(f"{self.folder}/{file}", table, plain_columns=(KEY,))
        except OSError as error:
            raise StorageError(f"{store.shown(self.folder)}/{file}: cannot be written: {error}") from error
        found = {name: distribution_of(table.column(name)).to_json() for name in self.schema.names if name != KEY}
        row = {
            "file": file, "rows": table.num_rows, "bytes": size, "duplicates": duplicates,
            "distributions": json.dumps(found),
        }  # fmt: skip
        yield pa.RecordBatch.from_pylist([row], schema=_PART_SCHEMA)


def by_block(rows: pa.Table, blocks: int) -> tuple[pa.Table, int]:
    """The rows in order of blocks, and of hashes within one, with `BLOCK` in place of `HASH`; and how many of them have
    the key of another. All rows of a key must be there."""
    hashes = rows.column(HASH).to_numpy()
    rest = hashes // blocks
    numbers = hashes - rest * blocks
    # One number to sort by, which is fast: the block above what is left of the hash, without its last bit.
    reach = (1 << 62) // blocks + 2
    place = numbers.astype(np.uint64) * np.uint64(2 * reach + 1)
    place += (rest >> 1).view(np.uint64) + np.uint64(reach)
    order = np.argsort(place)
    numbered = rows.drop_columns([HASH]).append_column(BLOCK, pa.array(numbers.astype(np.int32)))
    table = numbered.combine_chunks().take(pa.array(order))
    # Equal keys are in one place.
    beside = np.diff(place[order]) == 0
    alike = pc.filter(table.column(KEY), pa.array(np.append(beside, False) | np.insert(beside, 0, False)))
    return table, len(alike) - int(pc.count_distinct(alike, mode="all").as_py())
