"""Amounts of money from a user's column to whole minor units, exactly.

Text and decimals are taken digit by digit. A float64 stands for the amount it is the nearest float64 to, or a few units
in the last place beside: 17.13 * 5 gives 85.64999999999999 and means 85.65, while 85.6499 means a fraction of a cent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from feature_store.validation import MAX_MINOR
from numpy.typing import NDArray

from models.importing.arrow_compute import pc
from models.importing.bad_rows import RowCheck
from models.importing.text import missing, text_of

_MOST_DIGITS = 4
# How far short float64 arithmetic (a product, a sum of a few) may leave an amount from its nearest float64.
_ULPS = 8
# Text of so many digits is a printed float64.
_PRINTED_FLOAT_DIGITS = 15
_NUMBER = r"\A(?P<sign>[+-]?)(?P<whole>[0-9]*)\.?(?P<part>[0-9]*)\z"
_POWERS = 10 ** np.arange(_MOST_DIGITS + 1, dtype=np.int64)


def amounts_minor(
    column: pa.Array[Any], digits: NDArray[np.int64], check: RowCheck, field: str = "amount"
) -> NDArray[np.int64]:
    """Minor units int64[n]; `digits` int64[n]: decimals of each row's minor unit. Bad rows are marked and hold 0."""
    if pa.types.is_float64(column.type):
        minor, not_number, negative, fractional = _from_float(column, digits)
    else:
        minor, not_number, negative, fractional = _from_text(text_of(column, field), digits)
    too_large = minor > MAX_MINOR
    check.refuse(missing(column), field, "missing", "every row needs one", column)
    check.refuse(not_number, field, "not a number", "a plain decimal number such as 12.34", column)
    check.refuse(negative, field, "negative", "0 or more", column)
    check.refuse(too_large, field, "too large", f"at most {MAX_MINOR:,} minor units", column)
    check.refuse(fractional, field, "finer than the minor unit", "no more decimals than the currency has", column)
    return np.where(not_number | negative | too_large | fractional, 0, minor)


_Parsed = tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]


def _from_float(column: pa.Array[Any], digits: NDArray[np.int64]) -> _Parsed:
    value = np.asarray(pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False), dtype=np.float64)
    not_number = ~np.isfinite(value)
    scale = _POWERS[digits].astype(np.float64)
    # Beyond this the exact minor units do not matter: the row is too large anyway.
    bounded = np.clip(np.where(not_number, 0.0, value), -2.0 * MAX_MINOR, 2.0 * MAX_MINOR)
    nearest = np.rint(bounded * scale)
    # Division is correctly rounded: the quotient is the float64 nearest to that amount.
    fractional = np.abs(nearest / scale - bounded) > _ULPS * np.spacing(np.abs(bounded))
    return np.minimum(nearest, 2.0 * MAX_MINOR).astype(np.int64), not_number, value < 0, fractional


def _from_text(text: pa.Array[Any], digits: NDArray[np.int64]) -> _Parsed:
    parts = pc.extract_regex(pc.utf8_trim_whitespace(text), _NUMBER)
    sign, whole, part = (pc.fill_null(pc.struct_field(parts, [i]), "") for i in range(3))
    no_digits = pc.equal(pc.add(pc.binary_length(whole), pc.binary_length(part)), 0)
    not_number = np.asarray(pc.or_(pc.is_null(parts), no_digits).to_numpy(zero_copy_only=False), dtype=np.bool_)
    whole, part = pc.utf8_ltrim(whole, characters="0"), pc.utf8_rtrim(part, characters="0")
    long_whole, long_part = _longer(whole, 13), _longer(part, _MOST_DIGITS)
    whole_value = np.where(long_whole, 2 * MAX_MINOR, _integer(pc.utf8_slice_codeunits(whole, 0, 13)))
    padded = pc.utf8_rpad(pc.utf8_slice_codeunits(part, 0, _MOST_DIGITS), _MOST_DIGITS, padding="0")
    rest = _POWERS[_MOST_DIGITS - digits]
    part_value = _integer(padded)
    minor = whole_value * _POWERS[digits] + part_value // rest
    fractional = long_part | (part_value % rest != 0)
    # "85.64999999999999": the same rule as for the float64 that was printed.
    printed = fractional & _longer(pc.binary_join_element_wise(whole, part, ""), _PRINTED_FLOAT_DIGITS - 1)
    if printed.any():
        floats = pc.binary_join_element_wise(whole, part, ".").filter(pa.array(printed)).cast(pa.float64())
        minor[printed], _, _, fractional[printed] = _from_float(floats, digits[printed])
    minus = np.asarray(pc.equal(sign, "-").to_numpy(zero_copy_only=False), dtype=np.bool_)
    return minor, not_number, minus & ((minor > 0) | fractional), fractional


def _longer(text: pa.Array[Any], length: int) -> NDArray[np.bool_]:
    return np.asarray(pc.binary_length(text).to_numpy(zero_copy_only=False) > length, dtype=np.bool_)


def _integer(digits: pa.Array[Any]) -> NDArray[np.int64]:
    """Texts of 0 to 13 digits as int64; "" is 0."""
    return np.asarray(pc.utf8_lpad(digits, 1, padding="0").cast(pa.int64()).to_numpy(), dtype=np.int64)
