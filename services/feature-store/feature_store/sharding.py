"""Which shard an entity key belongs to: the partition that Kafka's default (murmur2) partitioner gives the key.

So any producer with Kafka's defaults, in any language, puts an event where its state is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 (org.apache.kafka.common.utils.Utils.murmur2), as an unsigned number."""
    length = len(data)
    h = (0x9747B28C ^ length) & _MASK
    whole = length - length % 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little")
        k = (k * _M) & _MASK
        k ^= k >> 24
        k = (k * _M) & _MASK
        h = ((h * _M) & _MASK) ^ k
    rest = data[whole:]
    if rest:
        h ^= int.from_bytes(rest, "little")
        h = (h * _M) & _MASK
    h ^= h >> 13
    h = (h * _M) & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=1 << 20)
def shard_of(key: str, shards: int) -> int:
    """The shard, 0 to shards - 1, of an entity key."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % shards


def shards_of(keys: Sequence[str], shards: int) -> NDArray[np.int32]:
    """The shard of each key, int32[n]."""
    return np.fromiter((shard_of(k, shards) for k in keys), dtype=np.int32, count=len(keys))
