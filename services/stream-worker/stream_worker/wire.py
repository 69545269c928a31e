"""Protobuf messages of one flat type → columns, all messages at once.

Serialisers write fields in order of their number, each a one-byte tag and a varint or a short text. So field after
field is decoded for all messages by array operations on their joined bytes; a message that is laid out otherwise
(unknown or repeated fields, negative numbers, long texts, garbage) is parsed alone by protobuf itself, which decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_VARINT, _LENGTH_DELIMITED = 0, 2
_INTEGER_LIMITS = {
    FieldDescriptor.TYPE_INT64: 1 << 62,
    FieldDescriptor.TYPE_UINT64: 1 << 62,
    FieldDescriptor.TYPE_INT32: 1 << 31,
    FieldDescriptor.TYPE_UINT32: 1 << 32,
    FieldDescriptor.TYPE_BOOL: 2,
}
_PADDING = bytes(16)
_CONTINUES = np.uint64(0x8080808080808080)
_SEVEN_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_MERGES = [
    (np.uint64(0x007F007F007F007F), np.uint64(0x7F007F007F007F00), np.uint64(1)),
    (np.uint64(0x00003FFF00003FFF), np.uint64(0x3FFF00003FFF0000), np.uint64(2)),
    (np.uint64(0x000000000FFFFFFF), np.uint64(0x0FFFFFFF00000000), np.uint64(4)),
]
_ONE = np.uint64(1)


class LayoutError(ValueError):
    """A message type that is not flat, or a field it does not have."""


@dataclass(frozen=True, slots=True)
class WireField:
    """One field: its tag byte on the wire; `limit`: integers at or above it are left to protobuf (0 for a text).

    `optional`: the contract tells a missing one from 0 or an empty text.
    """

    name: str
    tag: int
    limit: int
    optional: bool

    @property
    def is_text(self) -> bool:
        return self.limit == 0


@dataclass(frozen=True, slots=True)
class MessageLayout:
    """A flat message type: strings, integers and booleans with field numbers up to 15."""

    message: type[Message]
    fields: tuple[WireField, ...]

    @classmethod
    def of(cls, descriptor: Descriptor) -> MessageLayout:
        """Raises LayoutError that names the field which is not flat."""
        fields = [_wire_field(descriptor, f) for f in sorted(descriptor.fields, key=lambda f: f.number)]
        return cls(GetMessageClass(descriptor), tuple(fields))


def _wire_field(descriptor: Descriptor, f: FieldDescriptor) -> WireField:
    limit = 0 if f.type == FieldDescriptor.TYPE_STRING else _INTEGER_LIMITS.get(f.type, -1)
    if limit < 0 or f.is_repeated or f.number > 15:
        raise LayoutError(
            f"{descriptor.full_name}.{f.name}: an event's fields are single strings, integers or booleans"
            " numbered 1 to 15"
        )
    return WireField(f.name, f.number << 3 | (_VARINT if limit else _LENGTH_DELIMITED), limit, f.has_presence)


@dataclass(frozen=True, slots=True, eq=False)
class TextColumn:
    """Texts in one buffer: text i is `data[start[i] : start[i] + length[i]]`, UTF-8."""

    data: Bytes
    start: Ints
    length: Ints

    def packed(self) -> tuple[Bytes, Ints]:
        """The texts end to end, and their n + 1 offsets in that."""
        offsets = np.zeros(len(self.start) + 1, dtype=np.int64)
        np.cumsum(self.length, out=offsets[1:])
        index = np.repeat(self.start - offsets[:-1], self.length)
        index += np.arange(offsets[-1])
        return self.data[index], offsets

    def text(self, row: int) -> str:
        """One text; bytes that are not UTF-8 as escapes."""
        start = int(self.start[row])
        return self.data[start : start + int(self.length[row])].tobytes().decode("utf-8", "backslashreplace")

    def take(self, rows: NDArray[np.intp] | Ints) -> TextColumn:
        return TextColumn(self.data, self.start[rows], self.length[rows])


@dataclass(slots=True)
class Decoded:
    """Columns by field name, n rows; `malformed`: what is wrong with rows that are no such message.

    `absent`: of optional fields, bool[n], where it is missing; its column has 0 or an empty text there.
    """

    integers: dict[str, Ints] = field(default_factory=dict)
    texts: dict[str, TextColumn] = field(default_factory=dict)
    absent: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    malformed: dict[int, str] = field(default_factory=dict)

    def values(self, row: int) -> dict[str, int | str | None]:
        """One row's fields; None: missing."""
        texts = {name: column.text(row) for name, column in self.texts.items()}
        integers = {name: int(column[row]) for name, column in self.integers.items()}
        return {**texts, **integers, **{name: None for name, absent in self.absent.items() if absent[row]}}


def decode(values: Sequence[bytes | None], layout: MessageLayout) -> Decoded:
    """All messages' fields as columns; a None (a tombstone) is malformed.

    A text that is not UTF-8 may come through as it is, where protobuf would refuse the message: rules of texts do not.
    """
    n = len(values)
    raw = [v or b"" for v in values]
    data = np.frombuffer(b"".join([*raw, _PADDING]), dtype=np.uint8)
    words = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    end = np.cumsum(np.fromiter(map(len, raw), dtype=np.int64, count=n))
    position = np.concatenate((np.zeros(1, dtype=np.int64), end))[:n].copy()
    plain = np.ones(n, dtype=bool)
    out = Decoded()
    starts: dict[str, tuple[Ints, Ints]] = {}
    for f in layout.fields:
        rows = np.flatnonzero((data[position] == f.tag) & (position < end) & plain)
        at = position[rows] + 1
        number, size = _varints(words[at])
        column = np.zeros(n, dtype=np.int64)
        if f.optional:
            out.absent[f.name] = np.ones(n, dtype=bool)
            out.absent[f.name][rows] = False
        if f.is_text:
            good = (size == 1) & (at + size + number <= end[rows])
            rows_start = np.zeros(n, dtype=np.int64)
            rows_start[rows] = at + 1
            column[rows] = np.where(good, number, 0)
            starts[f.name] = (rows_start, column)
            position[rows] = np.where(good, at + size + number, at)
        else:
            good = (size > 0) & (at + size <= end[rows]) & (number < f.limit)
            column[rows] = number
            out.integers[f.name] = column
            position[rows] = np.where(good, at + size, at)
        plain[rows[~good]] = False
    plain &= position == end
    plain &= np.fromiter((v is not None for v in values), dtype=bool, count=n)
    others = np.flatnonzero(~plain)
    if len(others):
        data = _decode_alone(values, others, layout, data, starts, out)
    out.texts = {name: TextColumn(data, start, length) for name, (start, length) in starts.items()}
    return out


def _decode_alone(
    values: Sequence[bytes | None],
    rows: NDArray[np.intp],
    layout: MessageLayout,
    data: Bytes,
    starts: dict[str, tuple[Ints, Ints]],
    out: Decoded,
) -> Bytes:
    """Fills the rows that are not laid out plainly; gives the text buffer with their texts at its end."""
    extra = bytearray()
    for row in rows.tolist():
        message = layout.message()
        value = values[row]
        try:
            if value is None:
                raise DecodeError("the message has no value")
            message.ParseFromString(value)
        except DecodeError as error:
            out.malformed[row] = f"not a {layout.message.DESCRIPTOR.full_name}: {error}"
            message = layout.message()
        for f in layout.fields:
            found = getattr(message, f.name)
            if f.optional:
                out.absent[f.name][row] = not message.HasField(f.name)
            if f.is_text:
                text = found.encode()
                starts[f.name][0][row], starts[f.name][1][row] = len(data) + len(extra), len(text)
                extra += text
            else:
                out.integers[f.name][row] = np.int64(min(int(found), (1 << 63) - 1))
    return np.concatenate((data, np.frombuffer(bytes(extra), dtype=np.uint8)))


def _varints(words: NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """Value and length in bytes of the varint each little-endian word starts with; length 0 where it is over 8."""
    stops = ~words & _CONTINUES
    lowest = stops & (~stops + _ONE)
    below = lowest - _ONE  # all ones where no byte stops
    value = words & below & _SEVEN_BITS
    for keep, move, by in _MERGES:
        value = (value & keep) | ((value & move) >> by)
    size = np.where(stops == 0, 0, (np.bitwise_count(below).astype(np.int64) + 1) >> 3)
    return value.astype(np.int64), size
