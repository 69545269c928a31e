"""One Parquet file as a command's result: whole under its name, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(table: pa.Table, out: Path) -> None:
    """Writes beside `out` first; makes its folder where there is none."""
    unfinished = out.with_name(f".{out.name}.unfinished")
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, unfinished)
    os.replace(unfinished, out)
