"""Rows become parts: bundles keep every row with its part, and a part is in the order of its blocks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from batch_scorer.blocks import block_of
from batch_scorer.bundles import HASH, Bundler, by_part, rows_of, with_hash
from batch_scorer.errors import JobError
from batch_scorer.history import BLOCK
from batch_scorer.part_writer import by_block
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql import functions as f

SCHEMA = pa.schema({"key": pa.string(), "score": pa.float32()})
LEAST, GREATEST = -(1 << 63), (1 << 63) - 1
HASHES = st.integers(LEAST, GREATEST) | st.sampled_from([LEAST, LEAST + 1, -1, 0, 1, GREATEST - 1, GREATEST])


@given(hashes=st.lists(HASHES, min_size=1, max_size=60), blocks=st.integers(1, 30) | st.just(25_000))
def test_a_part_is_in_the_order_of_its_blocks(hashes: list[int], blocks: int) -> None:
    """A key is its hash here; the hash that is there twice is a key that came twice."""
    rows = pa.table(
        {"key": [str(h) for h in hashes], "score": np.arange(len(hashes), dtype=np.float32), HASH: hashes},
        schema=with_hash(SCHEMA),
    )
    table, duplicates = by_block(rows, blocks)
    found = table.column(BLOCK).to_pylist()
    assert found == sorted(found)
    assert found == [int(key) % blocks for key in table.column("key").to_pylist()]
    assert sorted(table.column("score").to_pylist()) == list(range(len(hashes)))
    assert duplicates == len(hashes) - len(set(hashes))


def test_all_rows_of_a_block_come_to_one_part(spark: SparkSession) -> None:
    keys = [f"käse {i}" for i in range(5_000)]
    frame = spark.createDataFrame([(key, i / 2) for i, key in enumerate(keys)], "key string, score float")
    bundles = by_part(frame.repartition(4), 3, Bundler(SCHEMA, 100))
    parts: list[list[bytes]] = [[], [], []]
    for number, value in bundles.select(f.spark_partition_id(), "rows").collect():
        parts[number].append(bytes(value))
    blocks: list[set[int]] = []
    scores: dict[str, float] = {}
    for part in parts:
        table = rows_of([pa.record_batch({"block": [0] * len(part), "rows": pa.array(part, pa.binary())})], SCHEMA)
        assert table is not None
        own = dict(zip(table.column("key").to_pylist(), table.column("score").to_pylist(), strict=True))
        assert {h % 100 for h in table.column(HASH).to_pylist()} == {block_of(key, 100) for key in own}
        blocks.append({block_of(key, 100) for key in own})
        scores |= own
    assert scores == {key: i / 2 for i, key in enumerate(keys)}
    assert sum(map(len, blocks)) == 100


def test_a_value_that_is_not_what_the_job_says_is_named() -> None:
    batch = pa.record_batch({"key": ["1"], "score": ["much"], HASH: [5], "_part": [0]})
    with pytest.raises(JobError, match="score: is string"):
        list(Bundler(SCHEMA, 10)([batch]))
