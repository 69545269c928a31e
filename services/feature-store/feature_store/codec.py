"""The bytes of one entity's exact state in one view: packed columns, versioned and checksummed.

Layout, little-endian: a header of fixed size for the view, then each column padded to 8 bytes. A column holds
`(value - base) / unit` in the narrowest of 0, 1, 2, 4 or 8 bytes (frame of reference), so a month of card payments is
12 to 16 bytes an event. Encoding and decoding run over many entities at once; the bytes depend on nothing but the
set of events and labels, so equal sets are equal bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from feature_store.definitions import FeatureView
from feature_store.kernel import Int64s, Labels, Points

VERSION = 1
_CRC_FROM = 8  # bytes 0..7 hold the version and the checksum of everything after them
_UNITS = np.array([1, 1_000, 1_000_000], dtype=np.int64)
_WIDTHS = np.array([0, 1, 2, 4, 8], dtype=np.int64)
_IS_WIDTH = np.isin(np.arange(256), _WIDTHS)
_TYPES: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
_MARK = bytes([VERSION, 0, 0, 0])
_NOTHING = np.empty(0, dtype=np.int64)
_FEW = 24  # so many states are decoded one by one in less time than all at once


class StateCorrupt(Exception):
    """Bytes that are not a state of this view: wrong version, length or checksum."""


@dataclass(frozen=True)
class StateCodec:
    """Encodes and decodes the states of one view."""

    view: FeatureView

    @cached_property
    def event_columns(self) -> tuple[str, ...]:
        return ("time_us", "id", *self.view.columns)

    @cached_property
    def label_columns(self) -> tuple[str, ...]:
        return ("time_us", "id", "known_at_us", "value") if self.view.label else ()

    @cached_property
    def _header(self) -> np.dtype[np.void]:
        n = len(self.event_columns) + len(self.label_columns)
        pad = -(2 * n) % 8
        return np.dtype(
            [
                ("version", "u1"),
                ("reserved", "u1", (3,)),
                ("crc", "<u4"),
                ("events", "<u4"),
                ("labels", "<u4"),
                ("base", "<i8", (n,)),
                ("width", "u1", (n,)),
                ("unit", "u1", (n,)),
                ("pad", "u1", (pad,)),
            ]
        )

    @cached_property
    def _numbers(self) -> Struct:
        """The header's numbers: events, labels, then base, width and unit of every column."""
        n = len(self._timed)
        return Struct(f"<8x2I{n}q{n}B{n}B")

    @cached_property
    def _timed(self) -> tuple[bool, ...]:
        return tuple(name.endswith("_us") for name in self.event_columns + self.label_columns)

    def decode(self, states: Sequence[bytes | None]) -> Points:
        """Events and labels of all states, group = index of the state; None is an entity without state.

        Raises StateCorrupt naming the first state that is damaged.
        """
        size = self._header.itemsize
        present = [i for i, s in enumerate(states) if s is not None]
        blobs = [s for s in states if s is not None]
        for i, blob in zip(present, blobs, strict=True):
            if len(blob) < size or blob[:4] != _MARK:
                raise self._corrupt(i, f"has format {blob[:4].hex()}, known is {_MARK.hex()}")
            if zlib.crc32(blob[_CRC_FROM:]) != int.from_bytes(blob[4:8], "little"):
                raise self._corrupt(i, "fails its checksum")
        if len(blobs) <= _FEW:
            return self._decode_each(present, blobs)
        header = np.frombuffer(b"".join([b[:size] for b in blobs]), dtype=self._header)
        body = np.frombuffer(b"".join(blobs), dtype=np.uint8)
        starts = np.cumsum([0] + [len(b) for b in blobs[:-1]], dtype=np.int64)[: len(blobs)] + size
        limits = np.concatenate((starts[1:] - size, [len(body)])).astype(np.int64)[: len(blobs)]
        group = np.array(present, dtype=np.int64)

        n_events = header["events"].astype(np.int64)
        n_labels = header["labels"].astype(np.int64)
        events: dict[str, Int64s] = {}
        labels: dict[str, Int64s] = {}
        at = starts
        for c, name in enumerate(self.event_columns + self.label_columns):
            self._check(present, _IS_WIDTH[header["width"][:, c]] & (header["unit"][:, c] < len(_UNITS)))
            is_event = c < len(self.event_columns)
            counts = n_events if is_event else n_labels
            width = header["width"][:, c].astype(np.int64)
            ends = at + (-(-(counts * width) // 8)) * 8
            self._check(present, ends <= limits)
            column = _unpack(body, at, counts, width, header["base"][:, c], _UNITS[header["unit"][:, c]])
            (events if is_event else labels)[name] = column
            at = ends
        self._check(present, at == limits)
        return self._points(np.repeat(group, n_events), events, np.repeat(group, n_labels), labels)

    def _decode_each(self, present: Sequence[int], blobs: Sequence[bytes]) -> Points:
        """As decode does it, one state after the other."""
        n_columns = len(self._timed)
        parts: list[list[Int64s]] = [[] for _ in range(n_columns)]
        events, labels = [], []
        for i, blob in zip(present, blobs, strict=True):
            n_events, n_labels, *frame = self._numbers.unpack_from(blob)
            events.append(n_events)
            labels.append(n_labels)
            at = self._header.itemsize
            for c in range(n_columns):
                count = n_events if c < len(self.event_columns) else n_labels
                base, width, unit = frame[c], frame[n_columns + c], frame[2 * n_columns + c]
                if count == 0:
                    parts[c].append(_NOTHING)
                    continue
                end = at + (count * width + 7) // 8 * 8
                if end > len(blob) or unit >= len(_UNITS) or (width and width not in _TYPES):
                    raise self._corrupt(i, "is not one of this view")
                if width:
                    values = np.frombuffer(blob, _TYPES[width], count, at).astype(np.int64)
                    if unit:
                        values *= _UNITS[unit]
                    if base:
                        values += base
                else:
                    values = np.full(count, base, dtype=np.int64)
                parts[c].append(values)
                at = end
            if at != len(blob):
                raise self._corrupt(i, "is not one of this view")
        columns = [_joined(p) for p in parts]
        by_event = dict(zip(self.event_columns, columns, strict=False))
        by_label = dict(zip(self.label_columns, columns[len(self.event_columns) :], strict=True))
        return self._points(_repeated(present, events), by_event, _repeated(present, labels), by_label)

    def _points(
        self, group: Int64s, events: Mapping[str, Int64s], label_group: Int64s, labels: Mapping[str, Int64s]
    ) -> Points:
        return Points(
            group=group,
            time_us=events["time_us"],
            id=events["id"],
            columns={name: events[name] for name in self.view.columns},
            labels=None
            if not self.view.label
            else Labels(label_group, labels["id"], labels["time_us"], labels["known_at_us"], labels["value"]),
        )

    def _check(self, present: Sequence[int], right: NDArray[np.bool_]) -> None:
        if not right.all():
            raise self._corrupt(present[int(np.argmin(right))], "is not one of this view")

    def _corrupt(self, i: int, what: str) -> StateCorrupt:
        return StateCorrupt(f"view {self.view.name}: state {i} {what}")

    def encode(self, points: Points, groups: int) -> list[bytes]:
        """The state of each group 0 to `groups` - 1. Events and labels must be sorted by (group, time, id, ...)."""
        if groups == 0:
            return []
        columns: list[tuple[Int64s, Int64s]] = []  # values, counts by group
        n_events = np.bincount(points.group, minlength=groups)
        n_labels = np.zeros(groups, dtype=np.int64)
        by_name = {"time_us": points.time_us, "id": points.id, **points.columns}
        columns += [(by_name[name], n_events) for name in self.event_columns]
        if points.labels is not None:
            n_labels = np.bincount(points.labels.group, minlength=groups)
            columns += [(getattr(points.labels, name), n_labels) for name in self.label_columns]

        header = np.zeros(groups, dtype=self._header)
        header["version"] = VERSION
        header["events"], header["labels"] = n_events, n_labels
        widths, scaled = [], []
        for c, (values, counts) in enumerate(columns):
            base, unit, raw, width = _frame(values, counts, self._timed[c])
            header["base"][:, c], header["unit"][:, c], header["width"][:, c] = base, unit, width
            widths.append(width)
            scaled.append(raw)
        sizes = [(-(-(counts * width) // 8)) * 8 for (_, counts), width in zip(columns, widths, strict=True)]
        size = self._header.itemsize
        ends = np.cumsum(size + sum(sizes, np.zeros(groups, dtype=np.int64)))
        out = np.zeros(int(ends[-1]) if groups else 0, dtype=np.uint8)
        starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
        at = starts + size
        for (_, counts), raw, width, taken in zip(columns, scaled, widths, sizes, strict=True):
            _pack(out, at, counts, width, raw)
            at = at + taken
        # The header is a multiple of 8 bytes, as is every column, so a row of 8-byte words addresses both.
        words = out.view("<u8")
        head = header.view("<u8").reshape(groups, size // 8)
        words[(starts[:, None] // 8) + np.arange(size // 8)] = head
        buffer = out.tobytes()
        return [_sealed(buffer[s:e]) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]


def _joined(parts: Sequence[Int64s]) -> Int64s:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _repeated(groups: Sequence[int], counts: Sequence[int]) -> Int64s:
    if len(groups) == 1:
        return np.full(counts[0], groups[0], dtype=np.int64)
    return np.repeat(np.array(groups, dtype=np.int64), np.array(counts, dtype=np.int64))


def _sealed(blob: bytes) -> bytes:
    return blob[:4] + zlib.crc32(blob[_CRC_FROM:]).to_bytes(4, "little") + blob[_CRC_FROM:]


def _frame(values: Int64s, counts: Int64s, timed: bool) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Per group base, unit code and width of a column, and the column's raw numbers."""
    groups = len(counts)
    base = np.zeros(groups, dtype=np.int64)
    unit = np.zeros(groups, dtype=np.int64)
    width = np.zeros(groups, dtype=np.int64)
    filled = np.flatnonzero(counts)
    if len(filled) == 0:
        return base, unit, values, width
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))[filled]
    base[filled] = np.minimum.reduceat(values, starts)
    raw = values - np.repeat(base, counts)
    if timed:
        for u in (1, 2):
            off = np.add.reduceat((raw % _UNITS[u]) != 0, starts)
            unit[filled[off == 0]] = u
        raw = raw // np.repeat(_UNITS[unit], counts)
    top = np.maximum.reduceat(raw.view(np.uint64), starts)
    code = (top > 0).astype(np.int64) + (top > 0xFF) + (top > 0xFFFF) + (top > 0xFFFFFFFF)
    width[filled] = _WIDTHS[code]
    return base, unit, raw, width


def _rows(at: Int64s, counts: Int64s, width: int) -> Int64s:
    """Positions, in units of `width` bytes, of every row of columns that begin at the byte offsets `at`."""
    before = np.cumsum(counts) - counts
    rows: Int64s = np.repeat(at // width - before, counts) + np.arange(int(counts.sum()))
    return rows


def _pack(out: NDArray[np.uint8], at: Int64s, counts: Int64s, width: Int64s, raw: Int64s) -> None:
    for w in _TYPES:
        chosen = width == w
        if not chosen.any():
            continue
        target = out[: len(out) // w * w].view(_TYPES[w])
        values = raw if chosen.all() else raw[np.repeat(chosen, counts)]
        target[_rows(at[chosen], counts[chosen], w)] = values.astype(_TYPES[w])


def _unpack(body: NDArray[np.uint8], at: Int64s, counts: Int64s, width: Int64s, base: Int64s, unit: Int64s) -> Int64s:
    values = np.zeros(int(counts.sum()), dtype=np.int64)
    for w in _TYPES:
        chosen = width == w
        if not chosen.any():
            continue
        source = body[: len(body) // w * w].view(_TYPES[w])
        rows = source[_rows(at[chosen], counts[chosen], w)].astype(np.uint64).view(np.int64)
        if chosen.all():
            values = rows
        else:
            values[np.repeat(chosen, counts)] = rows
    return values * np.repeat(unit, counts) + np.repeat(base, counts)
