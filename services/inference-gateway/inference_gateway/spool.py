"""The write-ahead files of one process: what is recorded here survives the process, also kill -9, until Kafka has it.

A folder of segments `<first sequence>.wal` (format: spool_format.py). One `append` is one write call. A segment is
deleted once Kafka has acknowledged all of it and all older ones. Sequences grow over restarts. A restart begins a
new segment, so a torn end stays an end. The page cache is trusted: a machine that loses power may lose the last
seconds; put the folder on a volume that outlives the container.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_gateway.errors import SpoolFull, SpoolLocked, SpoolUnwritable
from inference_gateway.spool_format import (
    MAX_COUNT,
    MESSAGES,
    VOIDED,
    Message,
    blocks,
    encode_messages,
    encode_voided,
    messages,
    voided,
)

_SUFFIX = ".wal"
_LOCK = "lock"
_READ_BYTES = 4 * 1024 * 1024


class Segment:
    """One file. `unacked`: messages that Kafka has not acknowledged; `voided`: sequences that are not to be sent."""

    __slots__ = ("first", "path", "size", "total", "unacked", "voided")

    def __init__(self, path: Path, first: int) -> None:
        self.path, self.first = path, first
        self.size = 0
        self.total = 0
        self.unacked = 0
        self.voided: set[int] = set()


@dataclass(frozen=True, slots=True)
class Place:
    """Where an appended block lies: its segment, position in the file, first sequence and count of messages."""

    segment: Segment
    start: int
    end: int
    first: int
    count: int


class Spool:
    """Not thread-safe: one owner, the event loop."""

    def __init__(
        self, folder: Path, *, max_bytes: int, segment_bytes: int = 16 << 20, reserve_bytes: int = 4 << 20
    ) -> None:
        """Open `folder`, made where it is missing, with what an earlier process left there.

        `max_bytes`: limit of all segments; its last `reserve_bytes` are for `append(..., reserved=True)`: decisions on
        events that were taken in. Raises SpoolLocked, SpoolUnwritable.
        """
        self.folder = folder
        self._max, self._segment_bytes, self._reserve = max_bytes, segment_bytes, min(reserve_bytes, max_bytes // 4)
        self._file = -1
        self._active: Segment | None = None
        self.segments: deque[Segment] = deque()
        self.size = 0
        self.damaged = 0
        self._lock = _locked(folder)
        self._next = time.time_ns()
        self._recover()

    def append(self, batch: Sequence[Message], *, reserved: bool = False) -> Place:
        """Write `batch` (1 to 65,535 messages) as one block; it survives this process once this returns.

        Raises SpoolFull or SpoolUnwritable: nothing of the batch is kept then.
        """
        if not 0 < len(batch) <= MAX_COUNT:
            raise ValueError(f"batch: 1 to {MAX_COUNT} messages, found {len(batch)}")
        segment, start, end = self._write(encode_messages(self._next, batch), self._max if reserved else self._limit)
        place = Place(segment, start, end, self._next, len(batch))
        self._next += len(batch)
        segment.total += len(batch)
        segment.unacked += len(batch)
        return place

    def try_write(self) -> None:
        """Write a block of nothing. Raises SpoolFull or SpoolUnwritable where an `append` would."""
        self._write(encode_voided([]), self._limit - (1 << 10))

    def void(self, place: Place, indexes: Sequence[int]) -> None:
        """Messages of an appended block that are not to be sent, also not after a restart."""
        sequences = [place.first + i for i in indexes]
        place.segment.voided.update(sequences)
        self._write(encode_voided(sequences), self._max + (1 << 20))
        self.acked(place.segment, len(sequences))

    def acked(self, segment: Segment, count: int) -> None:
        """Kafka has (or nobody wants) `count` more messages of `segment`; files that are done with are deleted."""
        segment.unacked -= count
        if segment.unacked == 0:
            self._delete_done()

    def reset(self) -> None:
        """Forget every acknowledgement of the segments that are left: all of it is to be sent again."""
        for segment in self.segments:
            segment.unacked = segment.total - len(segment.voided)

    def read(self, segment: Segment, at: int) -> Iterator[tuple[Place, list[Message]]]:
        """Blocks of messages of a segment from position `at` on, in order; voided messages included."""
        try:
            file = os.open(segment.path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            data = b""
            while at < segment.size:
                want = max(_READ_BYTES, 2 * len(data))
                data = os.pread(file, want, at)
                last = 0
                for block in blocks(data):
                    last = block.end
                    if block.kind == MESSAGES:
                        place = Place(segment, at + block.start, at + block.end, block.first, block.count)
                        yield place, messages(block)
                if last == 0 and len(data) < want:
                    return
                at += last
        finally:
            os.close(file)

    def after(self, segment: Segment) -> Segment | None:
        """The next younger segment; None for the youngest, and the oldest for one that is deleted already."""
        return next((s for s in self.segments if s.first > segment.first), None)

    def close(self) -> None:
        """Close and unlock; deletes what Kafka has acknowledged."""
        self._roll()
        self._delete_done()
        os.close(self._lock)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the segments that Kafka has not acknowledged in full."""
        return sum(segment.size for segment in self.segments if segment.unacked)

    @property
    def _limit(self) -> int:
        return self._max - self._reserve

    def _write(self, block: bytes, limit: int) -> tuple[Segment, int, int]:
        if self.size + len(block) > limit:
            raise SpoolFull(f"spool {self.folder}: {self.size} bytes wait for Kafka, the limit is {limit}")
        if self._active is not None and self._active.size >= self._segment_bytes:
            self._roll()
        try:
            segment = self._active or self._begin()
            start = segment.size
            self._write_whole(segment, block)
        except OSError as error:
            raise SpoolUnwritable(f"spool {self.folder}: {error.strerror}") from error
        segment.size += len(block)
        self.size += len(block)
        return segment, start, segment.size

    def _write_whole(self, segment: Segment, block: bytes) -> None:
        written = 0
        try:
            while written < len(block):
                written += os.write(self._file, memoryview(block)[written:] if written else block)
        except OSError:
            try:
                os.ftruncate(self._file, segment.size)
            except OSError:
                # The torn block stays at the end of this file; readers skip it.
                segment.size += written
                self.size += written
                self._roll()
            raise

    def _begin(self) -> Segment:
        path = self.folder / f"{self._next:020d}{_SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._active = Segment(path, self._next)
        self.segments.append(self._active)
        return self._active

    def _roll(self) -> None:
        if self._active is not None:
            os.close(self._file)
            self._file, self._active = -1, None

    def _delete_done(self) -> None:
        # Oldest first only: a younger segment may hold what voids a message of an older one.
        while self.segments and self.segments[0].unacked == 0:
            segment = self.segments[0]
            if segment is self._active:
                if segment.size < self._segment_bytes // 16:
                    return
                self._roll()
            self.segments.popleft()
            self.size -= segment.size
            segment.path.unlink(missing_ok=True)

    def _recover(self) -> None:
        void: set[int] = set()
        sequences: list[tuple[Segment, range]] = []
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            segment = Segment(path, int(path.stem))
            data = path.read_bytes()
            segment.size = len(data)
            sound = 0
            for block in blocks(data):
                sound += block.end - block.start
                if block.kind == VOIDED:
                    void.update(voided(block))
                elif block.kind == MESSAGES:
                    segment.total += block.count
                    sequences.append((segment, range(block.first, block.first + block.count)))
                    self._next = max(self._next, block.first + block.count)
            self.damaged += len(data) - sound
            self.segments.append(segment)
            self.size += segment.size
        for segment, numbers in sequences:
            if void:
                segment.voided |= void.intersection(numbers)
        self.reset()
        self._delete_done()


def adopt_orphans(base: Path, processes: int) -> int:
    """Move what was left by processes that there are no longer (numbers from `processes` on) to number 0's folder.

    Called before that folder is opened; returns the number of files. Folders that are in use stay as they are.
    """
    moved = 0
    for folder in sorted(base.iterdir() if base.is_dir() else ()):
        if not folder.name.isdigit() or int(folder.name) < processes or not any(folder.glob(f"*{_SUFFIX}")):
            continue
        try:
            lock = _locked(folder)
        except SpoolLocked:
            continue
        try:
            (base / "0").mkdir(exist_ok=True)
            for path in folder.glob(f"*{_SUFFIX}"):
                # Names are times in nanoseconds: one that is taken was given to nobody else.
                path.rename(base / "0" / path.name)
                moved += 1
        finally:
            os.close(lock)
    return moved


def _locked(folder: Path) -> int:
    """Lock a spool folder, made where it is missing; the file to close for unlocking."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SpoolUnwritable(f"spool folder {folder}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise SpoolLocked(f"spool folder {folder} is in use by another gateway process") from error
    return lock
