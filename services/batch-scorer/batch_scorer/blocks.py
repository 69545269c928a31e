"""A run's rows in Redis: blocks of some 200 rows, each one string value; which block a key is in follows from the key.

    "TB1\\0"  rows uint32  crc32 uint32  Arrow IPC record batch (columns `key` and the outputs)      little-endian

One value for many rows costs Redis a hundredth of the work and a fifth of the memory of one value a row, a block is
replaced whole (a task that is tried again changes nothing), and its header counts it. Blocks without rows exist too:
a block that is missing has been lost. The schema is not in the block but in the pointer to its run.
"""

from __future__ import annotations

import struct
import zlib

import pyarrow as pa
import xxhash

_HEADER = struct.Struct("<4sII")
_MAGIC = b"TB1\0"
#: Where the header says how many rows there are: for GETRANGE, first and last byte.
ROWS_AT = (4, 7)
#: Spark's function xxhash64 gives the same number with its fixed seed.
_SPARK_SEED = 42


class BlockCorrupt(Exception):
    """A value that is no block, or not the bytes that were written."""


def block_of(key: str, blocks: int) -> int:
    """The number of the block that holds `key`, 0 to blocks - 1; as Spark's pmod(xxhash64(key), blocks)."""
    unsigned = xxhash.xxh64_intdigest(key.encode(), seed=_SPARK_SEED)
    return (unsigned - (1 << 64) if unsigned >> 63 else unsigned) % blocks


def blocks_for(rows: int, rows_a_block: int) -> int:
    """How many blocks a run of so many rows has, at least one."""
    return max(1, -(-rows // rows_a_block))


def encode(rows: pa.RecordBatch) -> bytes:
    """The value of a block with these rows."""
    body = rows.serialize()
    return b"".join((_HEADER.pack(_MAGIC, rows.num_rows, zlib.crc32(body)), body))


def decode(value: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of a block, without copying them. Raises BlockCorrupt."""
    if len(value) < _HEADER.size or value[:4] != _MAGIC:
        raise BlockCorrupt(f"begins with {value[:4]!r}, a block begins with {_MAGIC!r}")
    _, rows, checksum = _HEADER.unpack_from(value)
    body = memoryview(value)[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise BlockCorrupt(f"checksum is {zlib.crc32(body)}, its header says {checksum}")
    batch = pa.ipc.read_record_batch(pa.py_buffer(body), schema)
    if batch.num_rows != rows:
        raise BlockCorrupt(f"has {batch.num_rows} rows, its header says {rows}")
    return batch


def row_of(key: str, rows: pa.RecordBatch) -> dict[str, object] | None:
    """The outputs of `key` by name, None where it is not among the rows. Vectors and rankings are lists."""
    at = rows.column(0).index(pa.scalar(key, pa.string())).as_py()
    if at < 0:
        return None
    return {name: rows.column(i)[at].as_py() for i, name in enumerate(rows.schema.names) if i > 0}
