"""The risks that a batch job published, in this process's memory: for answers without the model, with or without Redis.

A task asks for the job's pointer every few seconds; where it has moved, a thread fetches the run's blocks, a few at a
time with pauses, so that the event loop never waits for it, and then one assignment puts the new snapshot in place of
the old. While Redis is away, or a run is damaged or too large, the snapshot that is there goes on answering; without
any the rules answer alone. Twelve bytes a key: a 64-bit hash and a float32, sorted by hash.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
import redis
from batch_scorer.blocks import BlockCorrupt, decode
from batch_scorer.predictions import RunLost
from batch_scorer.runs import Run, block_key, current_key
from model_release.manifest import BatchPolicy
from model_release.policy import BatchRisks
from numpy.typing import NDArray
from redis.exceptions import RedisError
from service_kit.logs import get_logger
from service_kit.metrics import Metrics
from xxhash import xxh3_64_intdigest

_BLOCKS = 16
"""Of one round trip: some 3,000 keys."""
_PAUSE_S = 0.0005
"""After each block: the interpreter is the event loop's meanwhile."""

log = get_logger(__name__)


Wanted = tuple[str, str]
"""A job and its output, as a release's policy names them."""


class TooLarge(Exception):
    """A run with more keys than a process may hold."""


@dataclass(frozen=True, slots=True)
class BatchScore:
    """What takes part in an answer: a float32 score 0..1, the run it is from, and whether that run is too old."""

    score: float
    run: str
    stale: bool


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One run: hashes uint64 [n], ascending and distinct, and risks float32 [n]."""

    run: Run
    hashes: NDArray[np.uint64]
    risks: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        return self.hashes.nbytes + self.risks.nbytes

    @property
    def stale_after_us(self) -> int:
        """Wall clock from which on the run is older than its job allows."""
        return self.run.cutoff_us + self.run.max_age_s * 1_000_000

    def risk(self, key: str) -> float | None:
        """None where the run does not have the key."""
        wanted = np.uint64(xxh3_64_intdigest(key.encode()))
        at = int(self.hashes.searchsorted(wanted))
        return float(self.risks[at]) if at < len(self.hashes) and self.hashes[at] == wanted else None


class BatchScores:
    """Owned by the event loop. Holds the runs that the policies of the releases in use name (`want`)."""

    def __init__(self, url: str, metrics: Metrics, *, refresh_s: float, max_rows: int, timeout_s: float = 2.0) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._refresh_s, self._max_rows = refresh_s, max_rows
        self._wanted: frozenset[Wanted] = frozenset()
        self._snapshots: dict[Wanted, Snapshot] = {}
        self._refused: dict[Wanted, str] = {}
        self._stop = threading.Event()
        self._loads = metrics.counter("batch_score_loads_total", "Runs taken into memory, or not", ["outcome"])
        self._age = metrics.gauge("batch_score_age_seconds", "From the cut-off of the run in memory", across="max")
        self._rows = metrics.gauge("batch_score_rows", "Keys of the run in memory", across="max")
        self._bytes = metrics.gauge("batch_score_bytes", "Memory that the run takes")
        self._stale = metrics.gauge("batch_score_stale_state", "1 while the run is older than allowed", across="max")

    def want(self, policies: Iterable[BatchPolicy | None]) -> None:
        """Hold the runs that these policies name, and no others."""
        wanted = frozenset((policy.job, policy.output) for policy in policies if policy is not None)
        self._wanted = wanted
        self._snapshots = {key: snapshot for key, snapshot in self._snapshots.items() if key in wanted}

    def of(self, risks: BatchRisks, keys: Mapping[str, str], now_us: int) -> BatchScore | None:
        """The batch score of a request, `keys` by entity; None where there is no run, or it knows none of them."""
        snapshot = self._snapshots.get(risks.source)
        if snapshot is None:
            return None
        score = risks.score(
            [snapshot.risk(f"{entity}:{keys[entity]}") if entity in keys else None for entity in risks.entities]
        )
        return None if score is None else BatchScore(score, snapshot.run.run, now_us > snapshot.stale_after_us)

    async def refresh(self) -> None:
        """Keep the snapshots those of the published runs, for ever."""
        try:
            while True:
                for wanted in self._wanted:
                    await asyncio.to_thread(self._refresh_once, wanted)
                self._show()
                await asyncio.sleep(self._refresh_s)
        finally:
            self._stop.set()

    def _show(self) -> None:
        if held := list(self._snapshots.values()):
            now_us = time.time_ns() // 1_000
            self._age.set(max((now_us - snapshot.run.cutoff_us) / 1e6 for snapshot in held))
            self._rows.set(sum(len(snapshot.hashes) for snapshot in held))
            self._bytes.set(sum(snapshot.nbytes for snapshot in held))
            self._stale.set(any(now_us > snapshot.stale_after_us for snapshot in held))

    def _refresh_once(self, wanted: Wanted) -> None:
        """In a thread: follow the pointer. Whatever goes wrong, what is in memory stays."""
        job, output = wanted
        held = self._snapshots.get(wanted)
        try:
            with redis.Redis.from_url(
                self._url, socket_timeout=self._timeout_s, socket_connect_timeout=self._timeout_s
            ) as client:
                pointer = cast(bytes | None, client.get(current_key(job)))
                if pointer is None:
                    return
                run = Run.from_json(pointer)
                if held is not None and run.run == held.run.run:
                    return
                self._take(wanted, load(client, run, output, self._max_rows, self._stop))
        except (RedisError, OSError) as error:
            self._refuse(wanted, "unavailable", str(error))
        except TooLarge as error:
            self._refuse(wanted, "too_large", str(error))
        except (RunLost, ValueError, KeyError, TypeError) as error:
            self._refuse(wanted, "damaged", str(error))

    def _take(self, wanted: Wanted, snapshot: Snapshot | None) -> None:
        if snapshot is None or wanted not in self._wanted:
            return
        self._snapshots = {**self._snapshots, wanted: snapshot}
        self._refused.pop(wanted, None)
        self._loads.labels("loaded").inc()
        log.info("batch scores loaded", run=snapshot.run.run, rows=len(snapshot.hashes), bytes=snapshot.nbytes)

    def _refuse(self, wanted: Wanted, outcome: str, reason: str) -> None:
        self._loads.labels(outcome).inc()
        if reason != self._refused.get(wanted):
            self._refused[wanted] = reason
            kept = self._snapshots[wanted].run.run if wanted in self._snapshots else None
            log.warning("batch scores not refreshed", outcome=outcome, reason=reason, kept=kept)


def load(client: redis.Redis, run: Run, output: str, max_rows: int, stop: threading.Event) -> Snapshot | None:
    """The whole run, read slowly; None where `stop` was set meanwhile.

    Raises TooLarge, RunLost for a block that is missing or damaged, ValueError for a run without the output as float32.
    """
    schema = run.schema
    if output not in schema.names or str(schema.field(output).type) != "float":
        raise ValueError(f"run {run.run}: has no float32 output {output!r}, its outputs are {schema.names[1:]}")
    if run.rows > max_rows:
        raise TooLarge(f"run {run.run} has {run.rows:,} keys; batch_scores_max_rows is {max_rows:,}")
    hashes, risks = np.empty(run.rows, dtype=np.uint64), np.empty(run.rows, dtype=np.float32)
    at = 0
    for first in range(0, run.blocks, _BLOCKS):
        numbers = range(first, min(first + _BLOCKS, run.blocks))
        values = cast(list[bytes | None], client.mget([block_key(run.run, n) for n in numbers]))
        for number, value in zip(numbers, values, strict=True):
            if stop.is_set():
                return None
            if value is None:
                raise RunLost(f"block {number} of run {run.run} is not in Redis")
            try:
                rows = decode(value, schema)
            except BlockCorrupt as error:
                raise RunLost(f"block {number} of run {run.run}: {error}") from error
            end = at + rows.num_rows
            if end > run.rows:
                raise RunLost(f"run {run.run} has more rows than the {run.rows:,} that were counted")
            keys = rows.column(0).cast(pa.binary()).to_pylist()
            hashes[at:end] = np.fromiter(map(xxh3_64_intdigest, keys), np.uint64, len(keys))
            risks[at:end] = rows.column(schema.get_field_index(output)).to_numpy(zero_copy_only=False)
            at = end
            time.sleep(_PAUSE_S)
    if at != run.rows:
        raise RunLost(f"run {run.run} has {at:,} rows in Redis, {run.rows:,} were counted")
    if not ((risks > 0.0) & (risks < 1.0)).all():
        raise ValueError(f"run {run.run}: {output} must be probabilities above 0 and below 1")
    order = np.argsort(hashes)
    hashes, risks = hashes[order], risks[order]
    # Two keys of one hash, once in a million runs of a million keys: neither is known.
    single = np.ones(len(hashes), dtype=np.bool_)
    twins = hashes[1:] == hashes[:-1]
    single[1:] &= ~twins
    single[:-1] &= ~twins
    return Snapshot(run, hashes, risks) if single.all() else Snapshot(run, hashes[single], risks[single])
