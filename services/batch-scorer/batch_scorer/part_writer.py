"""What executors do with rows: score them, and write a run's parts; both take and give Arrow batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feature_store.warehouse_store import WarehouseStore

from batch_scorer.distributions import distribution_of
from batch_scorer.errors import JobError, StorageError
from batch_scorer.history import BLOCK
from batch_scorer.job import KEY, Score, Scoring

#: xxhash64 of the key, as Spark computes it.
HASH = "_hash"
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
_loaded: dict[tuple[str, str], Score] = {}


def loaded(scoring: Scoring, folder: str) -> Score:
    """A release ready to score, loaded once in this process."""
    name = (repr(scoring), folder)
    if name not in _loaded:
        _loaded[name] = scoring.load(Path(folder))
    return _loaded[name]


@dataclass(frozen=True, slots=True)
class Scorer:
    """Adds the columns of `scoring` to batches of rows; a column of the rows with the same name is replaced."""

    scoring: Scoring
    folder: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        score = None
        adds = dict(self.scoring.adds)
        for batch in batches:
            score = score or loaded(self.scoring, self.folder)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            kept = {name: column for name, column in columns.items() if name not in adds}
            added = dict(zip(adds, score(batch), strict=True))
            yield pa.RecordBatch.from_pydict(kept | {n: added[n].cast(kind) for n, kind in adds.items()})


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """Says how the release's golden rows differ when this process scores them; an empty text where they do not."""

    scoring: Scoring
    folder: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = self.scoring.golden(Path(self.folder))
            yield pa.RecordBatch.from_pydict({"differs": [found] * batch.num_rows})


@dataclass(frozen=True, slots=True)
class PartWriter:
    """Writes one partition as one part, sorted by block; the same file again if the task is tried again.

    Rows come with the hash of their key in the column `HASH`; `schema` is of the key and the outputs.
    """

    warehouse: str
    folder: str
    schema: pa.Schema
    blocks: int

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        with_hash = self.schema.append(pa.field(HASH, pa.int64()))
        tables = [_cast(batch, with_hash) for batch in batches if batch.num_rows]
        if not tables:
            return
        table = _by_block(pa.concat_tables(tables), self.blocks)
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
        # All rows of a key are in the same part.
        duplicates = table.num_rows - int(pc.count_distinct(keys).as_py())
        row = {
            "file": file, "rows": table.num_rows, "bytes": size, "duplicates": duplicates,
            "distributions": json.dumps(found),
        }  # fmt: skip
        yield pa.RecordBatch.from_pylist([row], schema=_PART_SCHEMA)


def _by_block(table: pa.Table, blocks: int) -> pa.Table:
    """The table in order of blocks, and of hashes within one; `BLOCK` in place of `HASH`."""
    hashes = table.column(HASH).to_numpy()
    numbers = np.mod(hashes, blocks).astype(np.int32)
    order = np.lexsort((hashes, numbers))
    return table.drop_columns([HASH]).append_column(BLOCK, pa.array(numbers)).take(pa.array(order))


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowException as error:
            raise JobError(f"output {field.name}: is {column.type}, its job says {field.type}: {error}") from error
    return pa.table(columns, schema=schema)
