"""Blocks, the runs that name them, and how distributions are counted and compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batch_scorer.blocks import BlockCorrupt, block_of, blocks_for, decode, encode, row_of
from batch_scorer.checks import run_checks
from batch_scorer.distributions import Distribution, distribution_of, fine_bins, lower_edge, psi
from batch_scorer.job import KEY, Output
from batch_scorer.pace import next_pause_ms
from batch_scorer.runs import Run, job_of, new_run_id
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyspark.sql import SparkSession
from pyspark.sql import functions as f
from tests.shop_job import JOB

OUTPUTS = (
    Output("score"), Output("visits", "int64"), Output("why", "string"), Output("taste", "vector", 2),
    Output("items", "ranking"),
)  # fmt: skip
RUN = Run("shop-20180825t000000-0a1b2c3d", "shop", 1_535_155_200_000_000, "shop-0", 7, 3, OUTPUTS, 3_600, who="me")
ROWS: list[dict[str, Any]] = [
    {
        "key": "a",
        "score": 0.5,
        "visits": 2**60,
        "why": "é",
        "taste": [1.0, 2.0],
        "items": [{"item": "x", "score": 1.0}],
    },
    {"key": "b", "score": None, "visits": 0, "why": "", "taste": [0.0, 0.0], "items": []},
]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_what_is_put_into_a_block_comes_out() -> None:
    batch = pa.RecordBatch.from_pylist([{**ROWS[0], "key": "before"}, *ROWS], schema=RUN.schema)
    value = encode(batch.slice(1))
    assert len(value) < len(encode(batch)), "a slice is written without the rows around it"
    rows = decode(value, RUN.schema)
    assert [row_of(row["key"], rows) for row in ROWS] == [
        {name: value for name, value in row.items() if name != KEY} for row in ROWS
    ]
    assert row_of("before", rows) is None
    for damaged in (b"", value[:8], b"x" + value[1:], value[:-1], value[:40] + b"\xff" + value[41:]):
        with pytest.raises(BlockCorrupt):
            decode(damaged, RUN.schema)


def test_a_run_survives_its_json() -> None:
    assert Run.from_json(RUN.to_json()) == RUN
    assert Run.from_json(RUN.to_json()[:-1] + ',"of_a_newer_version":1}') == RUN
    assert job_of(new_run_id("card-risk", RUN.cutoff_us)) == "card-risk"


def test_spark_and_readers_agree_on_a_keys_block(spark: SparkSession) -> None:
    keys = ["", "1", "4711", "customer:17", "é" * 40, "日本語", "x" * 200, *map(str, range(500))]
    frame = spark.createDataFrame([(key,) for key in keys], "key string")
    found = frame.select("key", f.pmod(f.xxhash64("key"), f.lit(97)).alias("block")).collect()
    assert {row["key"]: row["block"] for row in found} == {key: block_of(key, 97) for key in keys}


@given(st.integers(0, 10**7), st.integers(1, 10**4))
def test_enough_blocks_for_the_rows(rows: int, rows_a_block: int) -> None:
    blocks = blocks_for(rows, rows_a_block)
    assert blocks >= 1
    assert blocks * rows_a_block >= rows > (blocks - 1) * rows_a_block or rows == 0


@given(arrays(np.float32, st.integers(2, 60), elements=FLOATS))
def test_bins_are_in_the_order_of_their_values(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    ordered = np.sort(values)
    bins = fine_bins(ordered)
    assert (np.diff(bins) >= 0).all()
    edges = np.array([lower_edge(int(code) >> 6) for code in bins], dtype=np.float32)
    assert ((edges <= ordered) | (ordered == 0)).all()


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    values = rng.beta(1, 9, 5_000).astype(np.float32)
    column = pa.chunked_array(
        [pa.array(values[:1_000]), pa.array([None, np.nan], pa.float32()), pa.array(values[1_000:])]
    )
    whole = distribution_of(column)
    assert (whole.rows, whole.nulls, whole.values) == (5_002, 2, 5_000)
    assert whole.mean == pytest.approx(values.mean(dtype=np.float64))
    assert (whole.least, whole.greatest) == (values.min(), values.max())
    parts = distribution_of(column.slice(0, 1_200)) + distribution_of(column.slice(1_200))
    assert Distribution.from_json(parts.to_json()).fine == whole.fine
    assert sum(whole.coarse.values()) == 5_000
    assert distribution_of(pa.chunked_array([pa.array([0.25] * 99 + [0.75], pa.float32())])).same_share == 0.99


def test_empty_rankings_count_as_nulls() -> None:
    kind = OUTPUTS[4].arrow_type
    found = distribution_of(pa.chunked_array([pa.array([[{"item": "x", "score": 0.5}], [], None], kind)]))
    assert (found.rows, found.nulls, found.values) == (3, 2, 1)


def test_psi_tells_a_shift_from_chance() -> None:
    rng = np.random.default_rng(2)

    def bins(a: float, n: int) -> dict[int, int]:
        return distribution_of(pa.chunked_array([pa.array(rng.beta(a, 9, n).astype(np.float32))])).coarse

    before = bins(1.0, 20_000)
    same, chance = psi(before, bins(1.0, 20_000))
    assert same < chance < 0.01
    small, chance = psi(before, bins(1.0, 60))
    assert small < chance, "few rows differ by chance"
    shifted, chance = psi(before, bins(2.0, 20_000))
    assert shifted > 0.25 + chance
    assert psi(before, before)[0] == 0
    gone, _ = psi(before, {1: 20_000})
    assert gone > 1


def test_the_pause_grows_above_the_limit_and_eases_below() -> None:
    pause = 0.0
    for _ in range(12):
        pause = next_pause_ms(pause, 11.0, 10.0)
    assert pause == 500.0
    steps = 0
    while pause:
        pause, steps = next_pause_ms(pause, 9.0, 10.0), steps + 1
    assert 10 < steps < 40


def test_a_run_without_rows_fails_its_checks() -> None:
    assert [check.name for check in run_checks(JOB, 5, 0, 0, {}, {"score": {1: 5}}, "") if not check.passed] == ["rows"]
