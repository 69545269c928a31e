"""Small archived files of a day become few large ones, while others read and write.

Merged rows are in the larger file before the small ones go, and the reader takes the larger one from that moment on.
The small ones stay for a while, for readers that have planned with them. Killed anywhere, or done by two at once, the
warehouse reads the same: only a file that one other has all of is ever removed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from feature_store import warehouse_names as names
from feature_store.source_files import DatasetError, SourceFiles, day_name, times_us
from feature_store.warehouse import Warehouse, WarehouseFile
from feature_store.warehouse_rows import OFFSET, PARTITION
from feature_store.warehouse_store import StoredFile
from service_kit.logs import get_logger

from stream_worker.archive_columns import archived_schema
from stream_worker.archive_metrics import ArchiveMetrics
from stream_worker.archive_topics import ArchivedTopic

log = get_logger(__name__)

UNFINISHED_AFTER_S = 3_600.0


@dataclass(frozen=True, slots=True)
class CompactionPolicy:
    """`many` small files are merged at once, fewer only after `quiet_s` without a new one; a merged file has about
    `target_bytes`; merged files go `grace_s` after the one that has their rows was written. Seconds."""

    many: int = 8
    quiet_s: float = 3_600.0
    target_bytes: int = 64 * 1024 * 1024
    grace_s: float = 900.0


class Compaction:
    """`run` is a thread's body; `pass_over` does it once."""

    def __init__(
        self,
        warehouse: Warehouse,
        topics: Sequence[ArchivedTopic],
        policy: CompactionPolicy,
        metrics: ArchiveMetrics,
    ) -> None:
        self._warehouse, self._topics, self._policy, self._metrics = warehouse, topics, policy, metrics
        self._settled: dict[tuple[str, int], frozenset[str]] = {}

    def run(self, stop: threading.Event, every_s: float, owns: Callable[[str], bool]) -> None:
        """Every `every_s` seconds, the topics that `owns` says are ours."""
        while not stop.wait(every_s):
            for archived in self._topics:
                if owns(archived.topic):
                    self.pass_over(archived, stop)

    def pass_over(self, archived: ArchivedTopic, stop: threading.Event | None = None) -> None:
        """Look at every day of one source. What cannot be done now is logged and tried in the next pass."""
        source = _whole(archived)
        try:
            self._warehouse.store.clear_unfinished(source.folder, time.time() - UNFINISHED_AFTER_S)
            self._clear_marks(source)
            for day_us, files in self._warehouse.archived_days(source).items():
                if stop is not None and stop.is_set():
                    return
                self._day(source, day_us, files)
        except (DatasetError, OSError, pa.ArrowException) as error:
            log.warning("compaction waits", source=source.folder, reason=str(error))

    def _day(self, source: SourceFiles, day_us: int, files: Sequence[StoredFile]) -> None:
        listed = frozenset(file.path for file in files)
        if len(files) < 2 or self._settled.get((source.folder, day_us)) == listed:
            return
        found = self._warehouse.resolved(source, day_us, files)
        waiting = self._remove_superseded(source, found)
        live = [f for f in found if f.keep is None or f.keep]
        newest = max(f.modified_s for f in found)
        quiet = time.time() - newest >= self._policy.quiet_s
        merged = False
        for log_files in _by_log(live):
            for batch in batches(log_files, self._policy, quiet):
                self._merge(source, day_us, batch)
                merged = True
        if quiet and not merged and not waiting:
            self._settled[source.folder, day_us] = listed

    def _remove_superseded(self, source: SourceFiles, found: Sequence[WarehouseFile]) -> bool:
        """Whether some have to wait for their grace to end."""
        by_path = {f.path: f for f in found}
        waiting = False
        for path, other in names.superseded({f.path: (f.log, f.coverage) for f in found}).items():
            if time.time() - by_path[other].modified_s < self._policy.grace_s:
                waiting = True
                continue
            self._warehouse.store.delete(path)
            self._metrics.removed.labels(source.folder).inc()
        return waiting

    def _merge(self, source: SourceFiles, day_us: int, batch: Sequence[WarehouseFile]) -> None:
        """All rows of these files, also those that count elsewhere, so that one file has all of each."""
        coverage = names.union([f.coverage for f in batch])
        path = f"{source.folder}/{day_name(day_us)}/{names.file_name(batch[0].log, coverage)}"
        if any(f.path == path for f in batch):
            return
        whole = [replace(f, keep=None) for f in batch]
        table = pa.concat_tables([self._warehouse.read(f, source) for f in whole])
        partition, offset = (np.asarray(table.column(n).cast(pa.int64()).to_numpy()) for n in (PARTITION, OFFSET))
        times = times_us(table, source.time_column)
        order = np.lexsort((offset, partition, times))
        repeated = np.zeros(len(order), dtype=np.bool_)
        repeated[1:] = (np.diff(partition[order]) == 0) & (np.diff(offset[order]) == 0)
        footer = {**batch[-1].footer, **names.footer_ranges(coverage)}
        footer.pop(b"ARROW:schema", None)
        content = table.take(pa.array(order[~repeated])).replace_schema_metadata(footer)
        size = self._warehouse.store.write_table(path, content, plain_columns=(source.id_column,))
        self._metrics.files.labels(source.folder, "compaction").inc()
        self._metrics.bytes.labels(source.folder, "compaction").inc(size)
        log.info("files merged", path=path, files=len(batch), rows=content.num_rows, bytes=size)

    def _clear_marks(self, source: SourceFiles) -> None:
        """Of the empty files for one partition only the last says something."""
        last: dict[tuple[str, int], tuple[int, str]] = {}
        for file in self._warehouse.store.files(f"{source.folder}/{names.EMPTY_FOLDER}"):
            parsed = names.parsed(file.name)
            if parsed is None or parsed.coverage is None:
                continue
            ((partition, ((_, end),)),) = parsed.coverage.items()
            before = last.get((parsed.log, partition))
            if before is not None:
                self._warehouse.store.delete(min((end, file.path), before)[1])
            last[parsed.log, partition] = max((end, file.path), before or (end, file.path))


def batches(files: Sequence[WarehouseFile], policy: CompactionPolicy, quiet: bool) -> list[list[WarehouseFile]]:
    """Files of one log and day to merge with each other, each batch of about `target_bytes` at most.

    Small files join in order of size, and a larger one only when those before it weigh as much: a row is rewritten a
    few times in all, however slowly a day grows. When it has become quiet all small files join.
    """
    small = sorted((f for f in files if f.size_bytes < policy.target_bytes // 2), key=lambda f: (f.size_bytes, f.path))
    if not quiet:
        together = 0
        for i, file in enumerate(small):
            if i >= policy.many and file.size_bytes > together:
                small = small[:i]
                break
            together += file.size_bytes
        if len(small) < policy.many:
            return []
    out: list[list[WarehouseFile]] = [[]]
    for file in small:
        if sum(f.size_bytes for f in out[-1]) + file.size_bytes > policy.target_bytes:
            out.append([])
        out[-1].append(file)
    return [batch for batch in out if len(batch) > 1]


def _by_log(files: Sequence[WarehouseFile]) -> list[list[WarehouseFile]]:
    logs: dict[str, list[WarehouseFile]] = {}
    for file in files:
        logs.setdefault(file.log, []).append(file)
    return list(logs.values())


def _whole(archived: ArchivedTopic) -> SourceFiles:
    """With the columns that say where a row lay in the log."""
    own, schema = archived.files, archived_schema(archived)
    extra = schema.names[-1]
    return replace(own, schema=schema, optional=(*own.optional, extra))
