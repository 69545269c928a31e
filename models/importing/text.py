"""Ids, flags and small numbers from a user's column of whatever type it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from feature_store.ids import id64_array
from numpy.typing import NDArray

from models.importing.arrow_compute import pc
from models.importing.bad_rows import RowCheck
from models.importing.errors import SourceError

_IDENTIFIER = r"\A[A-Za-z0-9._:-]{1,64}\z"
_CANONICAL_DECIMAL = r"\A(0|[1-9][0-9]{0,17})\z"
_NOT_THERE = pa.array(["", "none", "null", "<na>", "n/a"])
_YES, _NO = pa.array(["1", "true", "t", "yes", "y"]), pa.array(["0", "false", "f", "no", "n"])


def text_of(column: pa.Array[Any], field: str) -> pa.Array[Any]:
    """string[n]: whole numbers as plain decimals, also where a column with gaps made them float64 (7.0 → "7").

    Raises SourceError for types that hold neither text nor numbers, and for float32: 0.1 in it is not 0.1.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return text_of(column.cast(kind.value_type), field)
    if pa.types.is_float64(kind):
        whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
        safe = pc.fill_null(whole, False)
        integers = pc.if_else(safe, column, 0.0).cast(pa.int64()).cast(pa.string())
        return _strings(pc.if_else(safe, integers, column.cast(pa.string())))
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if text or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.string())
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.string())
    raise SourceError(f"{field}: a column of {kind} is not understood; text, whole numbers, float64 and decimals are")


def missing(column: pa.Array[Any]) -> NDArray[np.bool_]:
    """bool[n]: null, empty, or a word for nothing. A NaN among numbers is not missing: it is not a number."""
    absent = pc.is_null(column)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            words = pc.utf8_lower(pc.utf8_trim_whitespace(column)).cast(pa.string())
            absent = pc.or_(absent, pc.is_in(words, value_set=_NOT_THERE))
    return np.asarray(absent.to_numpy(zero_copy_only=False), dtype=np.bool_)


def identifiers(column: pa.Array[Any], field: str, check: RowCheck) -> pa.Array[Any]:
    """string[n] of ids; rows without a well-formed one are marked bad."""
    if pa.types.is_floating(column.type):
        # Whole numbers with gaps come as float64 and the gaps as NaN.
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    text = text_of(column, field)
    nothing = missing(text) | _true(pc.equal(pc.utf8_lower(text), "nan"))
    check.refuse(nothing, field, "missing", "every row needs one", column)
    fractional = np.zeros(len(text), dtype=np.bool_)
    if pa.types.is_floating(column.type):
        fractional = ~_true(pc.equal(column, pc.floor(column)))
    malformed = ~_true(pc.match_substring_regex(text, _IDENTIFIER)) | fractional
    check.refuse(malformed, field, "malformed", "1 to 64 of A-Z a-z 0-9 . _ : -", column)
    return text


def flags(column: pa.Array[Any], field: str, check: RowCheck) -> NDArray[np.bool_]:
    """bool[n] from 0/1, true/false, yes/no; rows with anything else are marked bad."""
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text_of(column, field)))
    check.refuse(missing(text), field, "missing", "every row needs one", column)
    yes, no = _true(pc.is_in(text, value_set=_YES)), _true(pc.is_in(text, value_set=_NO))
    check.refuse(~(yes | no), field, "malformed", "0 or 1", column)
    return yes


def small_numbers(column: pa.Array[Any], field: str, check: RowCheck) -> NDArray[np.int32]:
    """int32[n] of 0 to 999,999; rows with anything else are marked bad."""
    text = text_of(column, field)
    check.refuse(missing(text), field, "missing", "every row needs one", column)
    good = _true(pc.match_substring_regex(text, r"\A[0-9]{1,6}\z"))
    check.refuse(~good, field, "malformed", "a whole number from 0 to 999999", column)
    return np.asarray(pc.if_else(pa.array(good), text, "0").cast(pa.int32()).to_numpy(), dtype=np.int32)


def ids64(ids: pa.Array[Any]) -> NDArray[np.int64]:
    """`feature_store.ids.id64` of each, int64[n], without a Python step for those that are canonical decimals."""
    decimal = pc.fill_null(pc.match_substring_regex(ids, _CANONICAL_DECIMAL), False)
    found = pc.if_else(decimal, ids, "0").cast(pa.int64()).to_numpy().copy()
    other = np.flatnonzero(~_true(decimal))
    if len(other):
        found[other] = id64_array(pc.fill_null(ids.take(pa.array(other)), "").to_pylist())
    return np.asarray(found, dtype=np.int64)


def _strings(array: pa.Array[Any]) -> pa.Array[Any]:
    return array


def _true(mask: pa.Array[Any]) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), dtype=np.bool_)
