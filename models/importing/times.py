"""Times from a user's column to microseconds since the epoch, UTC. A time without a zone is UTC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from feature_store.dataset import DAY_US, day_name
from numpy.typing import NDArray

from models.importing.arrow_compute import pc
from models.importing.bad_rows import RowCheck
from models.importing.columns import TimeUnit
from models.importing.errors import SourceError
from models.importing.text import missing

FROM_US = 946_684_800_000_000
TO_US = 4_102_444_800_000_000
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_ISO = (
    r"\A\s*(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"(?:[T ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<part>[0-9]{1,9}))?)?)?"
    r"\s*(?P<zone>Z|z|UTC|(?P<sign>[+-])(?P<zone_hour>[0-9]{2}):?(?P<zone_minute>[0-9]{2})?)?\s*\z"
)
# As many digits as an int64 surely holds: the year 2100 in nanoseconds begins with a 4.
_WHOLE = r"\A(?:[0-9]{1,18}|[1-8][0-9]{18})\z"
_RIGHT = "an ISO 8601 time such as 2024-05-31T14:03:00Z"


def times_us(
    column: pa.Array[Any], field: str, unit: TimeUnit | None, check: RowCheck, from_us: int = FROM_US
) -> NDArray[np.int64]:
    """int64[n], finer than a microsecond cut off; rows without a time from `from_us` to 2099 are bad and hold FROM_US.

    `unit`: what whole numbers count; SourceError where they are found and it is None.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    check.refuse(missing(column), field, "missing", "every row needs one", column)
    kind = column.type
    if pa.types.is_timestamp(kind):
        times, malformed = _counted(column.cast(pa.int64()), kind.unit), np.zeros(len(column), dtype=np.bool_)
    elif pa.types.is_date(kind):
        times, malformed = _counted(column.cast(pa.timestamp("s")).cast(pa.int64()), "s"), np.zeros(len(column), bool)
    elif pa.types.is_integer(kind):
        if unit is None:
            raise SourceError(
                f"{field}: whole numbers; say what they count since 1970 with --time-unit s, ms, us or ns"
            )
        times, malformed = _counted(column.cast(pa.int64(), safe=False), unit), np.zeros(len(column), dtype=np.bool_)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        times, malformed = _from_text(column.cast(pa.string()))
        if unit is not None:
            whole, counted = _whole_numbers(column.cast(pa.string()), unit)
            times, malformed = np.where(whole, counted, times), malformed & ~whole
    elif pa.types.is_null(kind):
        return np.full(len(column), FROM_US, dtype=np.int64)
    else:
        raise SourceError(f"{field}: a column of {kind} is not understood; times are timestamps, text or whole numbers")
    outside = (times < from_us) | (times >= TO_US)
    check.refuse(malformed, field, "malformed", _RIGHT, column)
    check.refuse(outside, field, "out of range", f"{day_name(from_us)} to 2099-12-31", column)
    return np.where(malformed | outside, FROM_US, times)


def _counted(numbers: pa.Array[Any], unit: str) -> NDArray[np.int64]:
    """Microseconds; what is far out of range stays out of range."""
    value = np.asarray(pc.fill_null(numbers, 0).to_numpy(), dtype=np.int64)
    per_second = _PER_SECOND[unit]
    if per_second > 1_000_000:
        return value // (per_second // 1_000_000)
    factor = 1_000_000 // per_second
    return np.clip(value, -1, TO_US // factor) * factor


def _whole_numbers(text: pa.Array[Any], unit: TimeUnit) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(which texts are whole numbers, their times)."""
    whole = pc.fill_null(pc.match_substring_regex(text, _WHOLE), False)
    counted = _counted(pc.if_else(whole, text, "0").cast(pa.int64()), unit)
    return np.asarray(whole.to_numpy(zero_copy_only=False), dtype=np.bool_), counted


def _from_text(text: pa.Array[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(times, which texts are none)."""
    parts = pc.extract_regex(text, _ISO)
    matched = np.asarray(pc.is_valid(parts).to_numpy(zero_copy_only=False), dtype=np.bool_)
    names = [parts.type.field(i).name for i in range(parts.type.num_fields)]

    def number(name: str, width: int = 1) -> NDArray[np.int64]:
        digits = pc.fill_null(pc.struct_field(parts, [names.index(name)]), "")
        return np.asarray(pc.utf8_rpad(digits, width, padding="0").cast(pa.int64()).to_numpy(), dtype=np.int64)

    year, month, day = np.where(matched, number("year"), 2000), number("month"), number("day")
    month_ok = (month >= 1) & (month <= 12)
    month_start = ((year - 1970) * 12 + np.where(month_ok, month, 1) - 1).astype("datetime64[M]")
    first_day = month_start.astype("datetime64[D]").astype(np.int64)
    month_days = (month_start + 1).astype("datetime64[D]").astype(np.int64) - first_day
    hour, minute, second = number("hour"), number("minute"), number("second")
    zone_hour, zone_minute = number("zone_hour"), number("zone_minute")
    good = matched & month_ok & (day >= 1) & (day <= month_days) & (hour < 24) & (minute < 60) & (second < 60)
    good &= (zone_hour < 24) & (zone_minute < 60)
    west = pc.equal(pc.fill_null(pc.struct_field(parts, [names.index("sign")]), ""), "-").to_numpy(zero_copy_only=False)
    offset = (zone_hour * 60 + zone_minute) * np.where(west, -1, 1)
    seconds = hour * 3600 + (minute - offset) * 60 + second
    times = (first_day + day - 1) * DAY_US + seconds * 1_000_000 + number("part", 9) // 1_000
    return np.where(good, times, FROM_US), ~good
