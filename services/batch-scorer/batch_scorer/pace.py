"""How fast a run may be written: while online reads are slow, the writers pause between their pipelines.

The driver, which has nothing else to do then, reads a value of the published run (or the pointer) some 200 times a
second as a gateway would, takes the 99th percentile of the last second, and sets the pause: doubled while the reads
are above the limit, eased when they are below it. One number in Redis tells all writers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

import redis
from redis.exceptions import RedisError

from batch_scorer.runs import Run, block_key, current_key, pace_key

_PROBE_EVERY_S = 0.005
_WINDOW = 200
_DECIDE_EVERY = 20
_LEAST_MS, _MOST_MS = 2.0, 500.0


class Pace:
    """Within `with Pace(...)`, the writers of `run` yield to reads slower than `p99_limit_ms`; 0: never."""

    def __init__(self, url: str, run: Run, current: Run | None, p99_limit_ms: float) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        self._key = pace_key(run.run)
        self._limit_ms = p99_limit_ms
        self._probe = block_key(current.run, 0) if current is not None else current_key(run.job)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)
        #: Worst 99th percentile seen, and the longest pause set, milliseconds.
        self.worst_p99_ms = self.longest_pause_ms = 0.0

    def __enter__(self) -> Self:
        if self._limit_ms > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        with contextlib.suppress(RedisError):  # it expires by itself
            self._redis.unlink(self._key)
        self._redis.close()

    def _run(self) -> None:
        seen: deque[float] = deque(maxlen=_WINDOW)
        pause_ms = 0.0
        probes = 0
        while not self._stop.wait(_PROBE_EVERY_S):
            began = time.perf_counter()
            try:
                self._redis.get(self._probe)
                seen.append((time.perf_counter() - began) * 1e3)
                probes += 1
                if probes % _DECIDE_EVERY == 0 and len(seen) >= _WINDOW // 2:
                    p99_ms = sorted(seen)[int(len(seen) * 0.99)]
                    self.worst_p99_ms = max(self.worst_p99_ms, p99_ms)
                    pause_ms = next_pause_ms(pause_ms, p99_ms, self._limit_ms)
                    self.longest_pause_ms = max(self.longest_pause_ms, pause_ms)
                    self._redis.set(self._key, int(pause_ms), ex=10)
            except RedisError:
                # Away: the writers wait by themselves.
                seen.clear()


def next_pause_ms(pause_ms: float, p99_ms: float, limit_ms: float) -> float:
    """Doubled above the limit (at least 2, at most 500 ms), eased by a fifth below; less than 2 ms is none."""
    if p99_ms > limit_ms:
        return min(_MOST_MS, max(_LEAST_MS, 2 * pause_ms))
    eased = 0.8 * pause_ms
    return eased if eased >= _LEAST_MS else 0.0
