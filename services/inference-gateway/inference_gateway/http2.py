"""HTTP/2's frames (RFC 9113) and blocks of headers, as far as a gRPC client wants them. Pure functions.

Blocks that are written leave nothing in the peer's table of headers, and the peer is told to keep none for its own: so
a block means the same wherever it stands, and is decoded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

MalformedHeaders = HPACKError

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
FRAME_HEAD, CANCEL = 9, 8
INITIAL_WINDOW, MAX_FRAME = 4, 5
DEFAULT_WINDOW, DEFAULT_FRAME, LARGEST_WINDOW = 65_535, 16_384, 0x7FFF_FFFF
NUMBER = Struct(">I")
SETTING = Struct(">HI")
_TABLE_SIZE = 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame; stream 0 is the connection."""
    return b"".join((len(payload).to_bytes(3, "big"), bytes((kind, flags)), NUMBER.pack(stream), payload))


def greeting() -> bytes:
    """How a client begins: no table of headers, and all the window that there is."""
    settings = SETTING.pack(_TABLE_SIZE, 0) + SETTING.pack(INITIAL_WINDOW, LARGEST_WINDOW)
    window = frame(WINDOW_UPDATE, 0, 0, NUMBER.pack(LARGEST_WINDOW - DEFAULT_WINDOW))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + window


def unpadded(payload: bytes, flags: int) -> bytes:
    """The payload of DATA or HEADERS without padding."""
    return payload[1 : len(payload) - payload[0]] if flags & PADDED else payload


def encoded_headers(headers: Mapping[str, str]) -> bytes:
    """A block of headers."""
    return Encoder().encode([NeverIndexedHeaderTuple(n.encode(), v.encode()) for n, v in headers.items()])


@lru_cache(maxsize=256)
def decoded_headers(block: bytes) -> Mapping[bytes, bytes]:
    """What a block of the peer says. Raises MalformedHeaders."""
    return {bytes(name): bytes(value) for name, value in Decoder().decode(block, raw=True)}
