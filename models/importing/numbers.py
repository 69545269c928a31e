"""Plain numbers from a user's column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.importing.arrow_compute import pc
from models.importing.bad_rows import RowCheck
from models.importing.text import missing, text_of

_NUMBER = r"\A\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?\s*\z"


def numbers(column: pa.Array[Any], field: str, most: float, check: RowCheck) -> NDArray[np.float64]:
    """float64[n]; rows without a number from 0 to `most` are marked bad and hold 0."""
    check.refuse(missing(column), field, "missing", "every row needs one", column)
    if pa.types.is_floating(column.type):
        value = np.asarray(pc.fill_null(column, 0.0).cast(pa.float64()).to_numpy(zero_copy_only=False))
        bad = ~np.isfinite(value)
    else:
        text = text_of(column, field)
        plain = pc.fill_null(pc.match_substring_regex(text, _NUMBER), False)
        value = np.asarray(pc.utf8_trim_whitespace(pc.if_else(plain, text, "0")).cast(pa.float64()).to_numpy())
        bad = ~np.asarray(plain.to_numpy(zero_copy_only=False), dtype=np.bool_)
    check.refuse(bad, field, "not a number", "a plain number such as 4.5", column)
    outside = ~bad & ~((value >= 0) & (value <= most))
    check.refuse(outside, field, "out of range", f"0 to {most:,.0f}", column)
    return np.where(bad | outside, 0.0, value)
