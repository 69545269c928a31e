"""Rows on their way to parts: a shuffle of bundles, Arrow record batches as binary values, in place of single rows.

A row of Spark's own costs more on its way through a shuffle and in and out of Python than in all the rest of a run. A
bundle costs that once for thousands: a task cuts its rows by part, in Arrow, and Spark moves a value for each part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batch_scorer.errors import JobError
from batch_scorer.job import KEY
from batch_scorer.rows_scoring import Scorer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

#: xxhash64 of the key, as Spark computes it; which part the row belongs to.
HASH, PART = "_hash", "_part"
#: As Spark and as Arrow know a bundle: a block that is in its part, and its rows.
BUNDLE_COLUMNS = "block long, rows binary"
_BUNDLE_SCHEMA = pa.schema({"block": pa.int64(), "rows": pa.binary()})
#: Rows that a task holds until it cuts them.
_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Bundler:
    """Rows with HASH and PART → bundles of `schema` (key, outputs) and HASH; `scorer` adds its columns first."""

    schema: pa.Schema
    blocks: int
    scorer: Scorer | None = None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with_part = with_hash(self.schema).append(pa.field(PART, pa.int32()))
        held: list[pa.RecordBatch] = []
        rows = 0
        for batch in self.scorer(batches) if self.scorer is not None else batches:
            held.append(_cast(batch, with_part))
            rows += batch.num_rows
            if rows >= _ROWS:
                yield self._bundles(held)
                held, rows = [], 0
        if rows:
            yield self._bundles(held)

    def _bundles(self, held: list[pa.RecordBatch]) -> pa.RecordBatch:
        batch = pa.concat_batches(held) if len(held) > 1 else held[0]
        parts = batch.column(PART).to_numpy()
        if parts.max() < 1 << 16:
            parts = parts.astype(np.uint16)  # which NumPy sorts by digits
        order = np.argsort(parts, kind="stable")
        rows = batch.drop_columns([PART]).take(pa.array(order))
        starts = np.flatnonzero(np.diff(parts[order].astype(np.int32), prepend=-1)).tolist()
        blocks = np.mod(rows.column(HASH).to_numpy()[starts], self.blocks)
        ends = [*starts[1:], len(order)]
        cut = [rows.slice(a, b - a).serialize().to_pybytes() for a, b in zip(starts, ends, strict=True)]
        return pa.record_batch([pa.array(blocks), pa.array(cut, pa.binary())], schema=_BUNDLE_SCHEMA)


def by_part(rows: DataFrame, parts: int, bundler: Bundler) -> DataFrame:
    """The rows' bundles, all of a part in one partition."""
    from pyspark.sql import functions as f

    block = f.pmod(f.xxhash64(KEY), f.lit(bundler.blocks))
    # What `repartition` makes of the number of a block: whole blocks to each part, and parts of about the same size.
    part = f.pmod(f.hash(block), f.lit(parts)).cast("int")
    placed = rows.select("*", f.xxhash64(KEY).alias(HASH), part.alias(PART))
    return placed.mapInArrow(bundler, BUNDLE_COLUMNS).repartition(parts, "block")


def rows_of(bundles: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table | None:
    """A partition's rows, with HASH; None where it has none. Nothing is copied."""
    held = [
        pa.ipc.read_record_batch(value.as_buffer(), with_hash(schema)) for batch in bundles for value in batch.column(1)
    ]
    return pa.Table.from_batches(held) if held else None


def with_hash(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(HASH, pa.int64()))


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowException as error:
            raise JobError(f"output {field.name}: is {column.type}, its job says {field.type}: {error}") from error
    return pa.record_batch(columns, schema=schema)
