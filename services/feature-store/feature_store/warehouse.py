"""The one reader of a warehouse: a folder or an object store's prefix, with the events of every source as Parquet.

    <warehouse>/<source>/<YYYY-MM-DD>.parquet                one file a day, sorted by (time, id): generated or imported
    <warehouse>/<source>/<YYYY-MM-DD>/<archived>.parquet     what the worker's role `archive` wrote (warehouse_names)

Both forms may stand side by side. Rows come out as if each event had been written once: archived files that overlap are
resolved by their ranges of offsets, and of rows with one id the first counts (those of a day's own file before archived
ones, these in their log's order), as in the feature state. Files outside the asked days are not opened; the schemas of
all others are checked before any is read.

Files that were merged into larger ones vanish a while later; a plan made before that is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from feature_store import warehouse_names as names
from feature_store import warehouse_rows as rows
from feature_store.source_files import DAY_US, UNFINISHED, DatasetError, SourceFiles, day_name, day_of
from feature_store.warehouse_names import Coverage
from feature_store.warehouse_store import StoredFile, WarehouseStore

TOPIC_KEY, TOPIC_ID_KEY, PARTITIONS_KEY = b"trine.topic", b"trine.topic_id", b"trine.partitions"
_TRIES = 4
_THREADS = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WarehouseFile:
    """One file to read, as `Warehouse.files` plans it. `path`: below the warehouse; `rows`: all that it holds.

    `log`: of an archived file; `keep`: which of its offsets count, None for all. `footer`: the file's own key-values.
    """

    path: str
    day_us: int
    rows: int
    size_bytes: int
    modified_s: float
    log: str = ""
    coverage: Coverage = field(default_factory=dict)
    keep: Coverage | None = None
    footer: Mapping[bytes, bytes] = field(default_factory=dict)

    @property
    def archived(self) -> bool:
        return bool(self.log)


class Warehouse:
    """The warehouse at `uri`, a folder or an URI that pyarrow knows (`s3://bucket/prefix?region=…`).

    All methods raise DatasetError, which names the file and column. `filesystem`: see WarehouseStore.
    """

    def __init__(self, uri: str | Path, filesystem: pafs.FileSystem | None = None) -> None:
        try:
            self.store = WarehouseStore(uri, filesystem)
        except ValueError as error:
            raise DatasetError(str(error)) from error
        self.uri = self.store.uri

    def days(self, source: SourceFiles) -> list[int]:
        """First microsecond of each UTC day that has files, in order."""
        return sorted({day_us for day_us, _ in self._listed(source)})

    def missing_days(self, source: SourceFiles, from_us: int | None = None, to_us: int | None = None) -> list[int]:
        """Days without a file between days that have one; with limits, also between those and the limits' days."""
        days = self.days(source)
        first = days[0] if from_us is None and days else (from_us or 0) // DAY_US * DAY_US
        last = days[-1] if to_us is None and days else ((to_us or 1) - 1) // DAY_US * DAY_US
        return sorted(set(range(first, last + 1, DAY_US)) - set(days)) if days else []

    def files(
        self, source: SourceFiles, from_us: int | None = None, to_us: int | None = None, every_day: bool = False
    ) -> list[WarehouseFile]:
        """What to read for rows with from_us <= time < to_us, schemas checked, in order of days; rows per file.

        For readers in parallel: `read` each, then see that an id counts once (repeats lie on one day). `every_day`:
        refuse a day without files inside the range.
        """
        return self._retried(lambda: self._planned(source, from_us, to_us, every_day))

    def load(
        self,
        source: SourceFiles,
        from_us: int | None = None,
        to_us: int | None = None,
        columns: Sequence[str] | None = None,
        every_day: bool = False,
    ) -> pa.Table:
        """Rows with from_us <= time < to_us, each event once, sorted by (time, id).

        Columns as `source.schema` has them, or those asked for, in that order. `every_day`: refuse a day without files
        inside the range.
        """

        rows.needed_columns(source, columns, whole=False)

        def load() -> pa.Table:
            planned = self._planned(source, from_us, to_us, every_day)
            needed = rows.needed_columns(source, columns, whole=any(f.archived for f in planned))
            tables = [self.read(file, source, needed) for file in planned]
            table = rows.once(tables, source, needed)
            return rows.cut(table, source, from_us, to_us).select(columns or source.schema.names)

        return self._retried(load)

    def read(
        self, file: WarehouseFile, source: SourceFiles, columns: Sequence[str] | None = None, places: bool = False
    ) -> pa.Table:
        """The rows of one planned file that count, checked, in the file's order; an id may be here and elsewhere.

        `places`: with `_partition` and `_offset`; -1 in a day's own file. Raises FileNotFoundError where the file was
        merged into another one since it was planned.
        """
        wanted = list(columns or source.schema.names)
        shown = self.store.shown(file.path)
        own = dict.fromkeys([*wanted, source.time_column])
        if file.archived:
            own |= dict.fromkeys(rows.PLACES)
        try:
            with self.store.open(file.path) as opened, pq.ParquetFile(opened) as parquet:
                table = parquet.read(columns=list(own)).replace_schema_metadata(None)
                if source.evolves:
                    now = {field.name: field for field in (*source.schema, *rows.PLACE_FIELDS)}
                    table = rows.as_now(table, pa.schema([now[name] for name in own]))
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{shown}: not a readable Parquet file: {error}") from error
        rows.check(shown, table, source, file.day_us, sorted_by_time=not file.archived)
        if not file.archived and (places or set(wanted) & set(rows.PLACES)):
            table = rows.without_places(table)
        elif file.keep is not None:
            table = rows.kept(table, file.keep)
        return table.select([*wanted, *rows.PLACES] if places else wanted)

    def archived(self, source: SourceFiles) -> dict[str, list[WarehouseFile]]:
        """Planned files of every log of the source, of all days; the log that was written to last comes last."""
        found: dict[str, list[WarehouseFile]] = {}
        for file in self._retried(lambda: self._planned(source, None, None, False)):
            if file.archived:
                found.setdefault(file.log, []).append(file)
        return dict(sorted(found.items(), key=lambda entry: max(f.modified_s for f in entry[1])))

    def ends(self, source: SourceFiles) -> dict[str, dict[int, int]]:
        """By log and partition, the offset after the last one that was archived, also where it left no row."""
        out: dict[str, dict[int, int]] = {}
        covered = [(f.log, f.coverage) for files in self.archived(source).values() for f in files]
        marks = (names.parsed(f.name) for f in self.store.files(f"{source.folder}/{names.EMPTY_FOLDER}"))
        for log, coverage in [*covered, *((m.log, m.coverage) for m in marks if m is not None)]:
            ends = out.setdefault(log, {})
            for partition, spans in (coverage or {}).items():
                ends[partition] = max(ends.get(partition, 0), spans[-1][1] + 1)
        return out

    def archived_days(self, source: SourceFiles) -> dict[int, list[StoredFile]]:
        """Archived files by day, as they are listed, none opened: first microsecond of the day → files."""
        found: dict[int, list[StoredFile]] = {}
        for day_us, file in self._listed(source):
            if file.path.count("/") > 1:
                found.setdefault(day_us, []).append(file)
        return found

    def resolved(self, source: SourceFiles, day_us: int, files: Sequence[StoredFile]) -> list[WarehouseFile]:
        """Archived files of one day with what of each counts; `keep` is empty for those that others cover.

        Raises FileNotFoundError where one vanished.
        """
        return self._resolved(source, [(day_us, file) for file in files])[0]

    # -- planning

    def _planned(
        self, source: SourceFiles, from_us: int | None, to_us: int | None, every_day: bool
    ) -> list[WarehouseFile]:
        listed = [
            (day_us, file)
            for day_us, file in self._listed(source)
            if (from_us is None or day_us + DAY_US > from_us) and (to_us is None or day_us < to_us)
        ]
        if every_day and (gaps := self.missing_days(source, from_us, to_us)):
            shown = ", ".join(day_name(day) for day in gaps[:5]) + (f" and {len(gaps) - 5} more" if gaps[5:] else "")
            raise DatasetError(
                f"{self.store.shown(source.folder)}: no file for {shown}; every day of the range needs one"
            )
        archived, own = self._resolved(source, listed)
        planned = [f for f in archived if f.keep is None or f.keep] + own
        return sorted(planned, key=lambda f: (f.day_us, f.path))

    def _resolved(
        self, source: SourceFiles, listed: Sequence[tuple[int, StoredFile]]
    ) -> tuple[list[WarehouseFile], list[WarehouseFile]]:
        """Archived files with what of them counts, and days' own files; the schemas of both are right."""
        footers = dict(zip((f.path for _, f in listed), self._footers([f for _, f in listed]), strict=True))
        archived: list[WarehouseFile] = []
        own: list[WarehouseFile] = []
        for day_us, stored in listed:
            metadata = footers[stored.path]
            footer = metadata.metadata or {}
            file = WarehouseFile(
                stored.path, day_us, metadata.num_rows, stored.size_bytes, stored.modified_s, footer=dict(footer)
            )
            shown = self.store.shown(stored.path)
            if stored.path.count("/") == 1:
                rows.check_schema(shown, metadata.schema.to_arrow_schema(), source.schema, source)
                own.append(file)
                continue
            name = names.parsed(stored.name.removesuffix(names.SUFFIX))
            coverage = (name.coverage or names.ranges_of(footer)) if name is not None else None
            if name is None or coverage is None:
                raise DatasetError(
                    f"{shown}: not a name of the archive's, <topic>-<partition>-<first offset>-<last offset>.parquet,"
                    " or a shared file whose footer does not list its ranges"
                )
            schema = pa.schema([*source.schema, *rows.PLACE_FIELDS])
            rows.check_schema(shown, metadata.schema.to_arrow_schema(), schema, source)
            archived.append(replace(file, log=name.log, coverage=coverage))
        by_day: dict[int, dict[str, tuple[str, Coverage]]] = {}
        for file in archived:
            by_day.setdefault(file.day_us, {})[file.path] = (file.log, file.coverage)
        keep = {path: part for files in by_day.values() for path, part in names.resolve(files).items()}
        return [replace(file, keep=keep[file.path]) for file in archived], own

    def _listed(self, source: SourceFiles) -> list[tuple[int, StoredFile]]:
        """(first microsecond of its day, file) of every file of the source."""
        if self.store.exists(UNFINISHED):
            raise DatasetError(
                f"{self.uri} is unfinished: the run that wrote it was stopped, or goes on; make it again"
            )
        folder = self.store.shown(source.folder)
        found = []
        for file in self.store.files(source.folder):
            below = file.path[len(source.folder) + 1 :]
            if below.startswith("_") or not below.endswith(names.SUFFIX):
                continue
            day, _, rest = below.partition("/")
            day_us = day_of(day if rest else day.removesuffix(names.SUFFIX))
            if day_us is None or "/" in rest:
                raise DatasetError(
                    f"{folder}/{below}: a file's name is its UTC day, like 2024-05-31.parquet, or its folder's is"
                )
            found.append((day_us, file))
        if not found:
            self._refuse_nothing(source)
        return sorted(found, key=lambda entry: (entry[0], entry[1].path))

    def _refuse_nothing(self, source: SourceFiles) -> None:
        there = self.store.exists(source.folder)
        if there and source.required:
            raise DatasetError(f"{self.store.shown(source.folder)}: no files named like 2024-05-31.parquet")
        if not there and (source.required or not self.store.exists("")):
            raise DatasetError(
                f"{self.store.shown('').rstrip('/')} is not a dataset folder or warehouse: it has no folder "
                f"{source.folder}/ "
                "(`trine data generate` and `trine data import` make one, the worker's role `archive` fills one)"
            )

    def _footers(self, files: Sequence[StoredFile]) -> Iterable[pq.FileMetaData]:
        def footer(file: StoredFile) -> pq.FileMetaData:
            try:
                with self.store.open(file.path) as opened:
                    return pq.read_metadata(opened)
            except FileNotFoundError:
                raise
            except (OSError, pa.ArrowException) as error:
                raise DatasetError(f"{self.store.shown(file.path)}: not a readable Parquet file: {error}") from error

        if len(files) < _THREADS:
            return [footer(file) for file in files]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(footer, files))

    def _retried(self, work: Callable[[], T]) -> T:
        for left in reversed(range(_TRIES)):
            try:
                return work()
            except FileNotFoundError as error:
                if not left:
                    raise DatasetError(f"{self.uri}: a file vanished while it was read: {error}") from error
        raise AssertionError("unreachable")
