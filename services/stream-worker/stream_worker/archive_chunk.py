"""What was read and is not in the warehouse yet, and the files it becomes.

A chunk covers, of each partition, the offsets from where the warehouse ends to where reading is. Of every day that has
rows in it, it becomes one file for each partition with many rows, and one that the other partitions share: a partition
alone has a few rows a minute.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feature_store import warehouse_names as names
from feature_store.source_files import DAY_US, SourceFiles, day_name, times_us
from feature_store.warehouse import PARTITIONS_KEY, TOPIC_ID_KEY, TOPIC_KEY
from feature_store.warehouse_names import Coverage, Span
from feature_store.warehouse_rows import OFFSET, PARTITION
from numpy.typing import NDArray

from stream_worker.dead_letters import Letter

OWN_FILE_ROWS = 20_000
"""A partition with so many rows of a day in a chunk gets a file of its own."""


@dataclass(frozen=True, slots=True)
class TopicLog:
    """One life of a topic: Kafka's id of it and how many partitions it has."""

    topic: str
    topic_id: str
    partitions: int

    @property
    def name(self) -> str:
        return names.log_name(self.topic, self.topic_id)

    @property
    def footer(self) -> dict[bytes, bytes]:
        """What every file of it says of its origin."""
        return {
            TOPIC_KEY: self.topic.encode(),
            TOPIC_ID_KEY: self.topic_id.encode(),
            PARTITIONS_KEY: str(self.partitions).encode(),
        }


@dataclass(slots=True)
class TopicChunk:
    """One topic's part of a chunk. `begin`, `next`: by partition, first offset not in the warehouse, next to read."""

    tables: list[pa.Table] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    begin: dict[int, int] = field(default_factory=dict)
    next: dict[int, int] = field(default_factory=dict)

    def reached(self, partition: int, first: int, following: int) -> None:
        """Offsets `first` to before `following` were read."""
        self.begin.setdefault(partition, first)
        self.next[partition] = max(following, self.next.get(partition, following))

    @property
    def spans(self) -> dict[int, Span]:
        """By partition, what was read and is not written."""
        return {p: (self.begin[p], end - 1) for p, end in self.next.items() if end > self.begin[p]}

    def drop(self, partitions: Sequence[int]) -> None:
        """Partitions that are not ours any more: whoever has them reads them again."""
        gone = pa.array(partitions, pa.int32())
        for p in partitions:
            self.begin.pop(p, None)
            self.next.pop(p, None)
        self.letters = [letter for letter in self.letters if letter.partition not in partitions]
        kept = (t.filter(pc.invert(pc.is_in(t.column(PARTITION), gone))) for t in self.tables)
        self.tables = [t for t in kept if t.num_rows]

    def written(self) -> None:
        """All of it is in the warehouse."""
        self.tables, self.letters = [], []
        self.begin = dict(self.next)


class Chunk:
    """All topics' parts, and when it is to be written: by rows, bytes or age, whichever comes first."""

    def __init__(self, rows: int, size_bytes: int, age_s: float) -> None:
        self._rows, self._bytes, self._age_s = rows, size_bytes, age_s
        self.topics: dict[str, TopicChunk] = {}
        self.rows = self.bytes = 0
        self._since: float | None = None

    def of(self, topic: str) -> TopicChunk:
        return self.topics.setdefault(topic, TopicChunk())

    def add(self, topic: str, table: pa.Table, letters: Sequence[Letter]) -> None:
        part = self.of(topic)
        if table.num_rows:
            part.tables.append(table)
        part.letters += letters
        self.rows += table.num_rows
        self.bytes += table.nbytes + sum(len(letter.value) for letter in letters)

    def due(self, now: float) -> bool:
        """`now`: monotonic seconds."""
        if self._since is None:
            if not any(part.spans for part in self.topics.values()):
                return False
            self._since = now
        return self.rows >= self._rows or self.bytes >= self._bytes or now >= self._since + self._age_s

    def drop(self, topic: str, partitions: Sequence[int]) -> None:
        self.of(topic).drop(partitions)
        self._recount()

    def written(self, topic: str) -> None:
        self.of(topic).written()
        self._recount()
        if not any(part.spans for part in self.topics.values()):
            self._since = None

    def later(self, seconds: float) -> None:
        """It could not be written: not due again before."""
        self._since = time.monotonic() + seconds - self._age_s

    def _recount(self) -> None:
        tables = [t for part in self.topics.values() for t in part.tables]
        self.rows = sum(t.num_rows for t in tables)
        self.bytes = sum(t.nbytes for t in tables)


@dataclass(frozen=True, slots=True)
class ChunkFile:
    """A file to write: path below the warehouse, rows in order of time, footer included."""

    path: str
    table: pa.Table


def chunk_files(
    source: SourceFiles, log: TopicLog, tables: Sequence[pa.Table], spans: Mapping[int, Span]
) -> Iterator[ChunkFile]:
    """The files of one topic's part of a chunk; their names and rows follow from `spans` and the log alone."""
    if not any(t.num_rows for t in tables):
        return
    table = pa.concat_tables(tables)
    partition, offset = _integers(table, PARTITION), _integers(table, OFFSET)
    times = times_us(table, source.time_column)
    day = times // DAY_US
    # A file for each (day, partition) with many rows; -1 stands for the partitions that share one.
    width = log.partitions + 1
    slot = day * width + partition
    _, inverse, counts = np.unique(slot, return_inverse=True, return_counts=True)
    owner = np.where(counts[inverse] >= OWN_FILE_ROWS, partition, -1)
    order = np.lexsort((offset, partition, times, owner, day))
    ends = np.flatnonzero((np.diff(day[order]) != 0) | (np.diff(owner[order]) != 0)) + 1
    bounds = [0, *ends.tolist(), len(order)]
    for begin, end in pairwise(bounds):
        rows = order[begin:end]
        here: Coverage = {p: [spans[p]] for p in np.unique(partition[rows]).tolist()}
        footer = {**log.footer, **names.footer_ranges(here)}
        folder = f"{source.folder}/{day_name(int(times[rows[0]]))}"
        content = table.take(pa.array(rows)).replace_schema_metadata(footer)
        yield ChunkFile(f"{folder}/{names.file_name(log.name, here)}", content)


def empty_marks(source: SourceFiles, log: TopicLog, tables: Sequence[pa.Table], spans: Mapping[int, Span]) -> list[str]:
    """Paths of empty files that say: these offsets were read and hold nothing (Kafka's own records, refused ones)."""
    there = set[int]().union(*(np.unique(_integers(t, PARTITION)).tolist() for t in tables))
    return [mark_path(source, log.name, p, span) for p, span in spans.items() if p not in there]


def mark_path(source: SourceFiles, log: str, partition: int, span: Span) -> str:
    name = names.file_name(log, {partition: [span]}).removesuffix(names.SUFFIX)
    return f"{source.folder}/{names.EMPTY_FOLDER}/{name}"


def _integers(table: pa.Table, column: str) -> NDArray[np.int64]:
    return np.asarray(table.column(column).cast(pa.int64()).to_numpy(), dtype=np.int64)
