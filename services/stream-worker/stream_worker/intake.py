"""Messages of one source → rows that may be used, and the others with the reason why not. No I/O.

Both stages take in a source topic by these functions, so that they agree on every message: first its bytes, then its
fields (feature_store.validation), then where it lies, then its time against its partition's clock, in log order.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from feature_store import admission
from feature_store.ids import id64
from feature_store.sharding import shards_of
from feature_store.validation import MAX_ID_LENGTH, IntegerRule, TextRule, first_problem, rule_of
from numpy.typing import NDArray

from stream_worker.streams import Stream
from stream_worker.wire import Decoded, Ints, TextColumn, decode

NO_LATENESS = 1 << 62
"""Labels may tell of any past: corrections and reports that come long after are normal."""

_MAX_DIGITS = 18
_POWERS = 10 ** np.arange(_MAX_DIGITS, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Messages:
    """n messages of one topic, as consumed: within a partition by offset.

    `recorded_us`: their timestamps, int64[n], admission.RECORDED_UNKNOWN where they have none. `last_us`: partition →
    its last timestamp.
    """

    topic: str
    partition: Ints
    offset: Ints
    recorded_us: Ints
    last_us: Mapping[int, int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that cannot be used: its row, the dead letter's reason, the field at fault, and a sentence."""

    row: int
    reason: str
    field: str
    detail: str


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A text column as int64[n] indices into its distinct values."""

    values: list[str]
    index: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Usable rows sorted by partition and offset, m each. `row`: the message's row. `keys`: by entity key field."""

    row: Ints
    partition: Ints
    time_us: Ints
    id: Ints
    keys: Mapping[str, Coded]
    fields: Mapping[str, Ints]
    known_at_us: Ints | None


def take_in(
    messages: Messages,
    stream: Stream,
    key_fields: Sequence[str],
    clocks: MutableMapping[int, int],
    shards: int,
    lateness_us: int,
    max_step_us: int,
) -> tuple[Rows, list[Refused]]:
    """Rows that may be used, and the refused; moves `clocks` (by partition, microseconds) on."""
    decoded, rows, keys, refused = sound(messages, stream, key_fields, shards)
    clock_field = stream.known_at or stream.time
    times, recorded = decoded.integers[clock_field][rows], messages.recorded_us[rows]
    lateness_us = NO_LATENESS if stream.is_label else lateness_us
    verdict = _judged(times, recorded, messages.partition[rows], clocks, lateness_us, max_step_us)
    if verdict.any():
        for i in np.flatnonzero(verdict).tolist():
            late_us = lateness_us if verdict[i] == admission.LATE else None
            refused.append(_untimely(int(rows[i]), clock_field, int(times[i]), int(recorded[i]), late_us, max_step_us))
        good = verdict == admission.OK
        rows = rows[good]
        keys = {name: Coded(c.values, c.index[good]) for name, c in keys.items()}
    fields = {
        name: decoded.integers[stream.value if stream.value and name == "value" else name][rows]
        for name in stream.fields
    }
    known_at = decoded.integers[stream.known_at][rows] if stream.known_at else None
    out = Rows(
        rows,
        messages.partition[rows],
        decoded.integers[stream.time][rows],
        ids_of(decoded.texts[stream.id].take(rows)),
        keys,
        fields,
        known_at,
    )
    return out, sorted(refused, key=lambda r: r.row)


def sound(
    messages: Messages, stream: Stream, key_fields: Sequence[str], partitions: int
) -> tuple[Decoded, NDArray[np.intp], dict[str, Coded], list[Refused]]:
    """All fields as columns, the sound rows of them sorted by partition and offset, these rows' keys by key field, and
    the others. Times are not judged against clocks. A stream without a key has no right partition."""
    decoded = decode(messages.values, stream.layout)
    bad = _bad_rows(decoded, stream)
    refused = _explained(decoded, stream, np.flatnonzero(bad))
    rows = np.flatnonzero(~bad)
    rows = rows[np.lexsort((messages.offset[rows], messages.partition[rows]))]
    keys = {name: _coded(decoded.texts[name].take(rows)) for name in key_fields}
    if stream.key and not stream.is_label:
        home = keys[stream.key] if stream.key in keys else _coded(decoded.texts[stream.key].take(rows))
        there = shards_of(home.values, partitions)[home.index] == messages.partition[rows]
        if not there.all():
            for row, at in zip(rows[~there].tolist(), home.index[~there].tolist(), strict=True):
                refused.append(_misplaced(row, stream, home.values[at], messages, partitions))
            rows = rows[there]
            keys = {name: Coded(c.values, c.index[there]) for name, c in keys.items()}
    return decoded, rows, keys, refused


def refused_ids(messages: Messages, stream: Stream, refused: Sequence[Refused]) -> dict[int, list[tuple[str, int]]]:
    """By partition, (key, id64) of refused messages whose fields are sound: what tails may hold and should forget."""
    rows = [r.row for r in refused if r.reason in ("late", "future")]
    decoded = decode([messages.values[row] for row in rows], stream.layout)
    out: dict[int, list[tuple[str, int]]] = {}
    for i, row in enumerate(rows):
        entry = decoded.texts[stream.key].text(i), id64(decoded.texts[stream.id].text(i))
        out.setdefault(int(messages.partition[row]), []).append(entry)
    return out


def ids_of(column: TextColumn) -> Ints:
    """feature_store.ids.id64 of every text, int64[n]; canonical decimals are read by array operations."""
    data, offsets = column.packed()
    n = len(column.length)
    out = np.zeros(n, dtype=np.int64)
    if n == 0:
        return out
    digit = data - np.uint8(ord("0"))
    others = np.cumsum(np.concatenate(([0], digit > 9)))
    first = digit[np.minimum(offsets[:-1], max(len(digit) - 1, 0))] if len(digit) else np.ones(n, dtype=np.uint8)
    numeric = (others[offsets[1:]] == others[offsets[:-1]]) & (column.length >= 1) & (column.length <= _MAX_DIGITS)
    numeric &= (first != 0) | (column.length == 1)
    power = np.repeat(offsets[1:], column.length) - np.arange(len(data)) - 1
    # Wraps around within rows that are not numeric; differences of the running sum are exact for those that are.
    weighted = digit.astype(np.int64) * _POWERS[np.minimum(power, _MAX_DIGITS - 1)]
    total = np.cumsum(np.concatenate((np.zeros(1, dtype=np.int64), weighted)))
    out = np.where(numeric, total[offsets[1:]] - total[offsets[:-1]], 0)
    for row in np.flatnonzero(~numeric).tolist():
        out[row] = id64(data[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8", "backslashreplace"))
    return out


def _coded(column: TextColumn) -> Coded:
    values, index = _dictionary(column, pa.utf8())
    return Coded(values, index)


def _dictionary(column: TextColumn, kind: pa.DataType) -> tuple[list[Any], Ints]:
    """Distinct values (str or bytes, as `kind` says) and each row's index into them."""
    data, offsets = column.packed()
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    array = pa.Array.from_buffers(kind, len(column.length), buffers).dictionary_encode()
    # The indices' own buffer: Arrow's to_numpy imports pandas.
    index = np.frombuffer(array.indices.buffers()[1], dtype=np.int32, count=len(array))
    return array.dictionary.to_pylist(), index.astype(np.int64)


def _bad_rows(decoded: Decoded, stream: Stream) -> NDArray[np.bool_]:
    """Rows that are malformed or break a field's rule."""
    n = len(next(iter(decoded.integers.values()))) if decoded.integers else 0
    bad = np.zeros(n, dtype=bool)
    bad[list(decoded.malformed)] = True
    for name, values in decoded.integers.items():
        rule = rule_of(name)
        if isinstance(rule, IntegerRule):
            bad |= (values < rule.low) | (values > rule.high)
    for name, column in decoded.texts.items():
        rule = rule_of(name)
        if isinstance(rule, TextRule):
            bad |= _bad_texts(column, rule)
    for name, absent in decoded.absent.items():
        if stream.needs(name):
            bad |= absent
    if stream.known_at is not None:
        bad |= decoded.integers[stream.known_at] < decoded.integers[stream.time]
    return bad


def _bad_texts(column: TextColumn, rule: TextRule) -> NDArray[np.bool_]:
    if rule.alphabet is not None:
        data, offsets = column.packed()
        bad: NDArray[np.bool_] = (column.length < 1) | (column.length > MAX_ID_LENGTH)
        foreign = ~_alphabet(rule.alphabet)[data]
        if foreign.any():
            so_far = np.cumsum(np.concatenate(([0], foreign)))
            bad |= so_far[offsets[1:]] != so_far[offsets[:-1]]
        return bad
    values, index = _dictionary(column, pa.binary())
    texts = [t.decode("utf-8", "backslashreplace") for t in values]
    wrong = np.fromiter((rule.problem(t) is not None for t in texts), dtype=bool, count=len(texts))
    return np.asarray(wrong[index])


def _alphabet(allowed: bytes) -> NDArray[np.bool_]:
    table = np.zeros(256, dtype=bool)
    table[np.frombuffer(allowed, dtype=np.uint8)] = True
    return table


def _explained(decoded: Decoded, stream: Stream, rows: NDArray[np.intp]) -> list[Refused]:
    out = []
    for row in rows.tolist():
        if row in decoded.malformed:
            out.append(Refused(row, "malformed", "", decoded.malformed[row]))
            continue
        values = decoded.values(row)
        names = [f.name for f in stream.layout.fields if values[f.name] is not None or stream.needs(f.name)]
        problem = first_problem({name: values[name] for name in names})
        if problem is not None:
            out.append(Refused(row, "invalid", problem.field, str(problem)))
        else:
            known_at = stream.known_at or ""
            detail = f"{known_at} is {values[known_at]}; must not be before {stream.time}, {values[stream.time]}"
            out.append(Refused(row, "invalid", known_at, detail))
    return out


def _misplaced(row: int, stream: Stream, key: str, messages: Messages, shards: int) -> Refused:
    right = int(shards_of([key], shards)[0])
    detail = (
        f"{stream.key} is {key!r}, which belongs to partition {right}, not {int(messages.partition[row])}:"
        " producers must partition by murmur2 of the key, as Kafka's default partitioner does"
    )
    return Refused(row, "invalid", stream.key, detail)


def _judged(
    times_us: Ints,
    recorded_us: Ints,
    partition: Ints,
    clocks: MutableMapping[int, int],
    lateness_us: int,
    max_step_us: int,
) -> NDArray[np.int8]:
    verdict = np.zeros(len(times_us), dtype=np.int8)
    for p, (start, end) in runs(partition).items():
        clock = clocks.get(p, admission.UNSET_CLOCK)
        verdict[start:end], clocks[p] = admission.judge(
            times_us[start:end], recorded_us[start:end], clock, lateness_us, max_step_us
        )
    return verdict


def runs(ordered: Ints) -> dict[int, tuple[int, int]]:
    """Where each value of a sorted array starts and ends."""
    if len(ordered) == 0:
        return {}
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.append(starts[1:], len(ordered))
    return dict(zip(ordered[starts].tolist(), zip(starts.tolist(), ends.tolist(), strict=True), strict=True))


def _untimely(row: int, field: str, time_us: int, recorded_us: int, late_us: int | None, max_step_us: int) -> Refused:
    """`late_us`: by more than this it is late; None: it is in the future."""
    if late_us is not None:
        detail = f"{field} is {time_us}, more than {late_us / 1e6:.0f} s behind the newest event of its partition"
        return Refused(row, "late", field, detail)
    step_s = max_step_us / 1e6
    if time_us > recorded_us + max_step_us:
        detail = f"{field} is {time_us}, more than {step_s:.0f} s past the time it was recorded at, {recorded_us}"
    else:
        detail = f"{field} is {time_us}, more than {step_s:.0f} s past the newest event of its partition"
    return Refused(row, "future", field, detail)
