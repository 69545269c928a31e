"""Shards are Kafka's partitions: the vectors are those of Kafka's own UtilsTest."""

from __future__ import annotations

import numpy as np
import pytest
from feature_store.sharding import murmur2, shard_of, shards_of


@pytest.mark.parametrize(
    ("text", "signed"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(text: str, signed: int) -> None:
    assert murmur2(text.encode()) == signed & 0xFFFFFFFF
    # Kafka's partition: toPositive(murmur2(key)) % partitions, where toPositive drops the sign bit.
    assert shard_of(text, 64) == (signed & 0x7FFFFFFF) % 64


def test_shards_are_in_range_and_all_are_used() -> None:
    keys = [f"C{i}" for i in range(5_000)]
    shards = shards_of(keys, 64)
    assert shards.dtype == np.int32
    assert shards.tolist() == [shard_of(k, 64) for k in keys]
    assert set(shards.tolist()) == set(range(64))
    assert shard_of("C1", 1) == 0
