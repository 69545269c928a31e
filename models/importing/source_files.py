"""A user's files, Parquet or CSV, read in batches: only the columns that are wanted, CSV cells as the text they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from models.importing.bad_rows import EXAMPLES_KEPT, BadRows
from models.importing.errors import SourceError

ROWS_AT_ONCE = 250_000
_CSV_BLOCK_BYTES = 32 << 20
_PARQUET, _CSV = (".parquet", ".pq"), (".csv", ".csv.gz")
# What an empty CSV cell may look like; other words are judged field by field.
_CSV_NULLS = ["", "NULL", "null", "None", "<NA>"]

# Columns present → field name → column.
Resolve = Callable[[str, list[str]], dict[str, str]]


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Some rows of a file: `columns` by field name; first_row: the number of the first one, from 1."""

    file: str
    first_row: int
    columns: pa.RecordBatch


def source_files(source: Path, also: Sequence[str] = ()) -> list[Path]:
    """The file itself, or a folder's Parquet and CSV files (at any depth) in order of their names.

    `also`: names of files that are CSV whatever their suffix.
    """
    if not source.exists():
        raise SourceError(f"{source}: no such file or folder")
    if source.is_file():
        if not _is(source, _PARQUET + _CSV) and source.name not in also:
            raise SourceError(f"{source}: not a {', '.join(_PARQUET + _CSV)} file")
        return [source]
    files = sorted(
        file
        for file in source.rglob("*")
        if file.is_file() and (_is(file, _PARQUET + _CSV) or file.name in also) and not file.name.startswith((".", "_"))
    )
    if not files:
        raise SourceError(f"{source}: no {', '.join(_PARQUET + _CSV)} files in this folder")
    return files


def batches(
    file: Path, resolve: Resolve, delimiter: str, bad_rows: BadRows, names: Sequence[str] | None = None
) -> Iterator[SourceBatch]:
    """All rows of a file. Rows of a CSV file with too few or too many cells go to `bad_rows` and are not numbered.

    `names`: of the columns of a CSV file without a first line that names them.
    """
    try:
        if _is(file, _PARQUET):
            yield from _parquet(file, resolve)
        else:
            yield from _csv(file, resolve, delimiter, bad_rows, names)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise SourceError(f"{file}: cannot be read: {error}") from error


def _parquet(file: Path, resolve: Resolve) -> Iterator[SourceBatch]:
    with pq.ParquetFile(file) as parquet:
        found = resolve(file.name, parquet.schema_arrow.names)
        names = {column: name for name, column in found.items()}
        row = 1
        for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=list(names)):
            yield SourceBatch(file.name, row, _renamed(batch, found))
            row += batch.num_rows


def _csv(
    file: Path, resolve: Resolve, delimiter: str, bad_rows: BadRows, names: Sequence[str] | None
) -> Iterator[SourceBatch]:
    as_in = ", as in the first line" if names is None else ""

    def refuse(row: pacsv.InvalidRow) -> str:
        right = f"{row.expected_columns} cells{as_in}"
        example: dict[str, object] = {"file": file.name, "row": row.number, "value": row.text[:80]}
        bad_rows.seen += 1
        bad_rows.add("row", f"{row.actual_columns} cells", right, 1, [example][:EXAMPLES_KEPT])
        return "skip"

    parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse)
    # One thread: rows are numbered in order.
    read = pacsv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES, column_names=names)
    if names is None:
        with pa.input_stream(file) as stream:
            header = stream.read(1 << 20).split(b"\n", 1)[0]
        names = pacsv.read_csv(pa.BufferReader(header + b"\n"), parse_options=parse).column_names
    found = resolve(file.name, list(names))
    convert = pacsv.ConvertOptions(
        include_columns=list(dict.fromkeys(found.values())),
        column_types={column: pa.string() for column in found.values()},
        null_values=_CSV_NULLS,
        strings_can_be_null=True,
    )
    row = 1
    with pa.input_stream(file) as stream, pacsv.open_csv(stream, read, parse, convert) as reader:
        for batch in reader:
            yield SourceBatch(file.name, row, _renamed(batch, found))
            row += batch.num_rows


def _renamed(batch: pa.RecordBatch, found: dict[str, str]) -> pa.RecordBatch:
    """Columns by field name; one column may serve two fields."""
    return pa.RecordBatch.from_arrays([batch.column(column) for column in found.values()], names=list(found))


def _is(file: Path, suffixes: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(suffixes)
