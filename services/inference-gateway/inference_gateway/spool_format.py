"""How messages lie in a spool file: blocks, each written by one call and covered by one checksum.

    block   = magic "TSP1" | crc32 u32 | kind u8 | count u16 | payload bytes u32 | first sequence u64 | payload
    MESSAGES: `count` times: topic u8 | partition u16 | key bytes u8 | value bytes u32 | key | value
    VOIDED:   `count` times: sequence u64 of a message that is not to be sent

Little-endian; the checksum covers everything after itself. A block that is cut off or damaged is skipped as a whole:
what was answered was written as a whole before. Pure functions; `spool.py` does the I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple
from zlib import crc32

MAGIC = b"TSP1"
MESSAGES, VOIDED = 1, 2
MAX_COUNT = 0xFFFF

_START = Struct("<4sI")
_REST = Struct("<BHIQ")
_MESSAGE = Struct("<BHBI")
_SEQUENCE = Struct("<Q")
HEADER_BYTES = _START.size + _REST.size
MESSAGE_OVERHEAD = _MESSAGE.size


class Message(NamedTuple):
    """One Kafka message. `topic` is an index into the recorder's topics."""

    topic: int
    partition: int
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """A sound block: `start` to `end` in its file; message i has sequence `first + i`."""

    kind: int
    start: int
    end: int
    first: int
    count: int
    payload: bytes


def encode_messages(first: int, messages: Sequence[Message]) -> bytes:
    """A MESSAGES block. At most MAX_COUNT messages, keys at most 255 bytes."""
    parts: list[bytes] = []
    pack = _MESSAGE.pack
    for topic, partition, key, value in messages:
        parts += (pack(topic, partition, len(key), len(value)), key, value)
    return _block(MESSAGES, first, len(messages), b"".join(parts))


def encode_voided(sequences: Sequence[int]) -> bytes:
    """A VOIDED block."""
    return _block(VOIDED, 0, len(sequences), b"".join(map(_SEQUENCE.pack, sequences)))


def blocks(data: bytes | memoryview, at: int = 0) -> Iterator[Block]:
    """Every sound block of a file's bytes from position `at`, in order.

    After damage the next sound block is looked for, so that one bad sector costs one block and not a file.
    """
    view = memoryview(data)
    while at + HEADER_BYTES <= len(view):
        block = _block_at(view, at)
        if block is not None:
            yield block
            at = block.end
            continue
        found = bytes(view[at + 1 :]).find(MAGIC)
        if found < 0:
            return
        at += 1 + found


def messages(block: Block) -> list[Message]:
    """The messages of a MESSAGES block."""
    payload, at, found = block.payload, 0, []
    for _ in range(block.count):
        topic, partition, key_bytes, value_bytes = _MESSAGE.unpack_from(payload, at)
        at += _MESSAGE.size
        middle = at + key_bytes
        end = middle + value_bytes
        found.append(Message(topic, partition, payload[at:middle], payload[middle:end]))
        at = end
    return found


def voided(block: Block) -> list[int]:
    """The sequences of a VOIDED block."""
    return [sequence for (sequence,) in _SEQUENCE.iter_unpack(block.payload)]


def _block(kind: int, first: int, count: int, payload: bytes) -> bytes:
    rest = _REST.pack(kind, count, len(payload), first)
    return b"".join((_START.pack(MAGIC, crc32(payload, crc32(rest))), rest, payload))


def _block_at(view: memoryview, at: int) -> Block | None:
    magic, checksum = _START.unpack_from(view, at)
    if magic != MAGIC:
        return None
    kind, count, size, first = _REST.unpack_from(view, at + _START.size)
    begin, end = at + HEADER_BYTES, at + HEADER_BYTES + size
    if end > len(view) or crc32(view[at + _START.size : end]) != checksum:
        return None
    return Block(kind, at, end, first, count, bytes(view[begin:end]))
