"""Protobuf fields put together from bytes that are serialised already.

A serialised message may be followed by more fields of the same message (protobuf's own merge rule), so what is known
as bytes (an event, a float vector) is appended and not built again. Field numbers come from the descriptors.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor

_LENGTH_DELIMITED = 2


def varint(value: int) -> bytes:
    """`value` >= 0 as a protobuf varint."""
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_tag(message: Descriptor, field: str) -> bytes:
    """What stands before length and content of `field` (a message, packed numbers, a string or bytes)."""
    return varint(message.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)


_SMALL = [bytes([i]) for i in range(0x80)]
