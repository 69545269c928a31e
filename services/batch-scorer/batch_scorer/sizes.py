"""How a run is cut: rows into blocks for readers and Redis, blocks into parts for tasks."""

from __future__ import annotations

from batch_scorer.blocks import blocks_for
from batch_scorer.job import BatchJob

#: A run's blocks are about so large at most, whatever its rows hold.
_BLOCK_BYTES = 8_192
_ROW_BYTES = {"bool": 1, "int32": 4, "float32": 4, "int64": 8, "float64": 8, "string": 24, "ranking": 240}


def cut(job: BatchJob, rows: int, block_rows: int, part_bytes: int, tasks: int) -> tuple[int, int]:
    """(blocks, parts) of a run of so many rows; `tasks`: how many run at a time."""
    row_bytes = row_size(job)
    blocks = blocks_for(rows, max(1, min(block_rows, _BLOCK_BYTES // row_bytes)))
    return blocks, max(tasks, -(-rows * row_bytes // part_bytes))


def row_size(job: BatchJob) -> int:
    """Bytes of a row, roughly."""
    return 16 + sum(4 * o.size if o.kind == "vector" else _ROW_BYTES[o.kind] for o in job.outputs)
