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
from collections.abc import Mapping
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
    """Owned by the event loop. `policy`: the release's; None: there are never any scores."""

    def __init__(
        self, url: str, policy: BatchPolicy | None, metrics: Metrics, *, refresh_s: float, max_rows: int,
        timeout_s: float = 2.0,
    ) -> None:  # fmt: skip
        self._url, self._policy, self._timeout_s = url, policy, timeout_s
        self._refresh_s, self._max_rows = refresh_s, max_rows
        self._risks = None if policy is None else BatchRisks(policy)
        self._snapshot: Snapshot | None = None
        self._refused = ""
        self._stop = threading.Event()
        self._loads = metrics.counter("batch_score_loads_total", "Runs taken into memory, or not", ["outcome"])
        self._age = metrics.gauge("batch_score_age_seconds", "From the cut-off of the run in memory", across="max")
        self._rows = metrics.gauge("batch_score_rows", "Keys of the run in memory", across="max")
        self._bytes = metrics.gauge("batch_score_bytes", "Memory that the run takes")
        self._stale = metrics.gauge("batch_score_stale_state", "1 while the run is older than allowed", across="max")

    def of(self, keys: Mapping[str, str], now_us: int) -> BatchScore | None:
        """The batch score of a request, `keys` by entity; None where there is no run, or it knows none of them."""
        snapshot = self._snapshot
        if snapshot is None or self._risks is None:
            return None
        score = self._risks.score(
            [snapshot.risk(f"{entity}:{keys[entity]}") if entity in keys else None for entity in self._risks.entities]
        )
        return None if score is None else BatchScore(score, snapshot.run.run, now_us > snapshot.stale_after_us)

    async def refresh(self) -> None:
        """Keep the snapshot that of the published run, for ever."""
        if self._policy is None:
            return
        try:
            while True:
                await asyncio.to_thread(self._refresh_once, self._policy)
                self._show()
                await asyncio.sleep(self._refresh_s)
        finally:
            self._stop.set()

    def _show(self) -> None:
        snapshot = self._snapshot
        if snapshot is not None:
            now_us = time.time_ns() // 1_000
            self._age.set((now_us - snapshot.run.cutoff_us) / 1e6)
            self._rows.set(len(snapshot.hashes))
            self._bytes.set(snapshot.nbytes)
            self._stale.set(now_us > snapshot.stale_after_us)

    def _refresh_once(self, policy: BatchPolicy) -> None:
        """In a thread: follow the pointer. Whatever goes wrong, what is in memory stays."""
        try:
            with redis.Redis.from_url(
                self._url, socket_timeout=self._timeout_s, socket_connect_timeout=self._timeout_s
            ) as client:
                pointer = cast(bytes | None, client.get(current_key(policy.job)))
                if pointer is None:
                    return
                run = Run.from_json(pointer)
                if self._snapshot is not None and run.run == self._snapshot.run.run:
                    return
                self._take(load(client, run, policy.output, self._max_rows, self._stop))
        except (RedisError, OSError) as error:
            self._refuse("unavailable", str(error))
        except TooLarge as error:
            self._refuse("too_large", str(error))
        except (RunLost, ValueError, KeyError, TypeError) as error:
            self._refuse("damaged", str(error))

    def _take(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        self._snapshot = snapshot
        self._refused = ""
        self._loads.labels("loaded").inc()
        log.info("batch scores loaded", run=snapshot.run.run, rows=len(snapshot.hashes), bytes=snapshot.nbytes)

    def _refuse(self, outcome: str, reason: str) -> None:
        self._loads.labels(outcome).inc()
        if reason != self._refused:
            self._refused = reason
            kept = None if self._snapshot is None else self._snapshot.run.run
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
