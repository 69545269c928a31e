"""How far the wall clock is absorbed: proofs that who has read so far has seen all that was recorded by then.

Twice a second a probe takes the time, then the ends of the logs. A shard that has read up to such an end has absorbed
everything recorded before that time, whether the log is busy or idle. A re-keyed log proves less: only what the
re-key stages (of all workers) had passed on, which their committed offsets and the metadata beside them tell.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from service_kit.health import Health
from service_kit.logs import get_logger

from stream_worker import kafka
from stream_worker.streams import PlanStreams
from stream_worker.wire import Ints

log = get_logger(__name__)

_KEPT = 128


def now_us() -> int:
    """Wall clock, microseconds since the epoch."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class RekeyNote:
    """What the re-key stage keeps beside a committed offset: its clock of the partition, and the time of the last
    message below the offset (both microseconds)."""

    clock_us: int
    progress_us: int

    def text(self) -> str:
        return f"{self.clock_us},{self.progress_us}"

    @classmethod
    def of(cls, text: str | None) -> RekeyNote | None:
        try:
            clock, progress = (text or "").split(",")
            return cls(int(clock), int(progress))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Per topic: who has read up to `ends` (int64[shards]) has absorbed what was recorded before `at_us`."""

    at_us: dict[str, int]
    ends: dict[str, Ints]


class ProgressTracker:
    """Checkpoints not yet passed. Of one thread."""

    def __init__(self) -> None:
        self._checkpoints: deque[Checkpoint] = deque()

    def add(self, checkpoint: Checkpoint) -> None:
        self._checkpoints.append(checkpoint)
        if len(self._checkpoints) > _KEPT:
            # A long way to catch up: keep every other one, so that old and new proofs stay.
            self._checkpoints = deque(list(self._checkpoints)[::2])

    def clear(self) -> None:
        """Forget all: a topic was made anew, and its offsets mean something else."""
        self._checkpoints.clear()

    def reached_us(self, topic: str, read_offset: Ints) -> Ints:
        """For a topic's shards read up to `read_offset` (int64[shards]): absorbed until when; 0 where nothing says."""
        out: Ints = np.zeros(len(read_offset), dtype=np.int64)
        for checkpoint in self._checkpoints:
            if topic in checkpoint.ends:
                passed = read_offset >= checkpoint.ends[topic]
                out = np.where(passed, np.maximum(out, checkpoint.at_us[topic]), out)
        return out

    def lag_events(self, topic: str, read_offset: Ints) -> Ints:
        """Log entries beyond `read_offset` at the newest checkpoint."""
        if not self._checkpoints or topic not in self._checkpoints[-1].ends:
            return np.zeros(len(read_offset), dtype=np.int64)
        behind: Ints = np.maximum(self._checkpoints[-1].ends[topic] - read_offset, 0)
        return behind


class ProgressProbe:
    """Asks Kafka, in a thread of its own, and hands over checkpoints."""

    def __init__(
        self,
        admin: Callable[[], AdminClient],
        onlooker: Consumer,
        streams: PlanStreams,
        shards: int,
        every_s: float,
        health: Health,
    ) -> None:
        """`onlooker`: a consumer of the re-key stage's group that never joins it."""
        self._make_admin, self._onlooker, self._streams = admin, onlooker, streams
        self._admin = admin()
        self._shards, self._every_s, self._health = shards, every_s, health
        self._found: deque[Checkpoint] = deque(maxlen=_KEPT)
        self.rekey_lag_events = 0

    def run(self, stop: threading.Event) -> None:
        """Probe until `stop`; a Kafka that does not answer gives no proofs."""
        try:
            self._run(stop)
        finally:
            self._onlooker.close()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._every_s):
            try:
                self._found.append(self._probe())
                self._health.restore("kafka")
            except KafkaException as error:
                log.info("no proof of progress", reason=str(error))
                self._health.degrade("kafka", "does not answer what the ends of the logs are")
                # After a broker's restart an admin client goes on asking with leader epochs of before.
                self._admin = self._make_admin()

    def take(self) -> list[Checkpoint]:
        """Checkpoints since the last call."""
        out = []
        while self._found:
            out.append(self._found.popleft())
        return out

    def _probe(self) -> Checkpoint:
        began = now_us()
        ends = self._ends([*self._streams.direct, *(t for t in self._streams.rekeyed if t not in self._streams.direct)])
        at = {topic: began for topic in self._streams.direct}
        if self._streams.derived:
            # In this order: what was committed by now is below the ends asked for next.
            passed_on = self._rekeyed_until(began, ends)
            derived = self._ends(list(self._streams.derived))
            at |= dict.fromkeys(derived, passed_on)
            ends |= derived
        return Checkpoint(at, {topic: ends[topic] for topic in at})

    def _ends(self, topics: Sequence[str]) -> dict[str, Ints]:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = {TopicPartition(t, p): latest for t, p in kafka.partitions(topics, self._shards)}
        futures = self._admin.list_offsets(
            asked,
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=kafka.REQUEST_TIMEOUT_S,
        )
        out = {t: np.zeros(self._shards, dtype=np.int64) for t in topics}
        for at, future in futures.items():
            out[at.topic][at.partition] = future.result().offset
        return out

    def _rekeyed_until(self, began_us: int, ends: dict[str, Ints]) -> int:
        """Everything recorded on the sources before this time is on the re-keyed topics."""
        asked = [TopicPartition(t, p) for t, p in kafka.partitions(list(self._streams.rekeyed), self._shards)]
        committed = self._onlooker.committed(asked, timeout=kafka.REQUEST_TIMEOUT_S)
        found = {(tp.topic, tp.partition): tp for tp in committed}
        until, lag = began_us, 0
        for topic in self._streams.rekeyed:
            for partition, end in enumerate(ends[topic].tolist()):
                tp = found.get((topic, partition))
                offset = tp.offset if tp is not None and tp.offset >= 0 else 0
                if offset < end:
                    note = RekeyNote.of(tp.metadata) if tp is not None else None
                    until = min(until, note.progress_us if note is not None else 0)
                    lag += end - offset
        self.rekey_lag_events = lag
        return until
