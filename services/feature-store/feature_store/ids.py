"""Event ids as the int64 that feature state keeps: small, and ordered as people expect numeric ids to be."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""What an event id or an entity key looks like."""

_NUMERIC = re.compile(r"0|[1-9][0-9]{0,17}")
_HASHED = 1 << 62
_HASH_MASK = _HASHED - 1


def id64(text: str) -> int:
    """The positive int64 of an event id.

    A canonical decimal below 10^18 is itself, so numeric ids order as numbers; any other id is 2^62 plus 62 bits of
    its xxh3 hash. Ids are compared within one entity's state only, where a clash of hashes is out of reach.
    """
    if text.isascii() and text.isdigit() and _NUMERIC.fullmatch(text):
        return int(text)
    return _HASHED | (xxhash.xxh3_64_intdigest(text.encode()) & _HASH_MASK)


def id64_array(texts: Sequence[str]) -> NDArray[np.int64]:
    """`id64` of each text, int64[n]."""
    return np.fromiter((id64(t) for t in texts), dtype=np.int64, count=len(texts))
