"""Published predictions of batch jobs, read from Redis: the core of PredictionService, without a transport.

One round trip as a rule: the pointer travels with the blocks of the run that it named before, and only where it has
moved the blocks are fetched again. So an answer is from one run, the one that was current when it was asked for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis.asyncio
from batch_scorer.predictions import Freshness, Predicted, RunLost, found, freshness, wanted
from batch_scorer.runs import Run, current_key
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from service_kit.metrics import Metrics

from inference_gateway.errors import GatewayError, InvalidRequest

MAX_KEYS = 1_000
RECOMMENDATIONS = "recommendations"
_JOB = re.compile(r"[a-z][a-z0-9-]{0,39}")
_MAX_KEY = 256


class PredictionNotFound(GatewayError):
    """No run of the job is published, or the run does not have the key: NOT_FOUND, 404."""


class PredictionsUnavailable(GatewayError):
    """Redis is away, or does not hold what its pointer points to: UNAVAILABLE, 503."""


@dataclass(frozen=True, slots=True)
class Read:
    """Predictions of the keys asked for, in order (None: unknown), their run and its age."""

    predicted: Predicted
    age: Freshness

    @property
    def run(self) -> Run:
        return self.predicted.run


class PredictionReads:
    """Reads for one process's event loop."""

    def __init__(self, url: str, timeout_s: float, metrics: Metrics) -> None:
        self._redis = redis.asyncio.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        #: job -> the pointer's bytes and what they say.
        self._known: dict[str, tuple[bytes, Run]] = {}
        self._reads = metrics.counter("prediction_reads_total", "Reads of predictions", ["outcome"])
        self._seconds = metrics.histogram("prediction_read_seconds", "Time of a read of predictions")

    async def close(self) -> None:
        await self._redis.aclose()

    async def one(self, job: str, key: str) -> Read:
        """Raises InvalidRequest, PredictionNotFound for an unknown key too, PredictionsUnavailable."""
        read = await self.many(job, [key], "key")
        if read.predicted.values[0] is None:
            raise PredictionNotFound(f"job {job!r} has no prediction of key {key!r} in run {read.run.run}", "key")
        return read

    async def recommendations(self, job: str, user: str, limit: int) -> tuple[Read, list[dict[str, Any]]]:
        """A user's ranking, best first, at most `limit` items (0: all). Raises as `one`, for a job without a ranking
        too. Items: `item`, `score`."""
        job = job or RECOMMENDATIONS
        read = await self.many(job, [user], "user_id")
        ranking = next((output.name for output in read.run.outputs if output.kind == "ranking"), None)
        if ranking is None:
            raise PredictionNotFound(f"job {job!r} makes no ranking", "job")
        values = read.predicted.values[0]
        if values is None:
            raise PredictionNotFound(f"job {job!r} has no ranking for user {user!r} in run {read.run.run}", "user_id")
        items = cast(list[dict[str, Any]], values[ranking] or [])
        return read, items[:limit] if limit else items

    async def many(self, job: str, keys: Sequence[str], field: str = "keys") -> Read:
        """All keys from one run. Raises InvalidRequest, PredictionNotFound for an unknown job,
        PredictionsUnavailable."""
        began = time.perf_counter()
        try:
            _check(job, keys, field)
            predicted = await self._read(job, keys)
        except GatewayError as error:
            self._reads.labels(type(error).__name__).inc()
            raise
        self._reads.labels("found").inc()
        self._seconds.observe(time.perf_counter() - began)
        return Read(predicted, freshness(predicted.run, time.time_ns() // 1_000))

    async def _read(self, job: str, keys: Sequence[str]) -> Predicted:
        try:
            known = self._known.get(job)
            names = None if known is None else wanted(known[1], keys)
            pointer, values = await self._fetch(job, names)
            if pointer is None:
                self._known.pop(job, None)
                raise PredictionNotFound(f"job {job!r} has no published run", "job")
            if known is None or names is None or pointer != known[0]:
                known = pointer, Run.from_json(pointer)
                self._known[job] = known
                names = wanted(known[1], keys)
                # Wherever the pointer moves meanwhile: the run that it named keeps its rows for days.
                values = cast(list[bytes | None], await self._redis.mget(list(names.values())))
            return found(known[1], keys, dict(zip(names, values, strict=True)))
        except (RedisError, OSError, TimeoutError) as error:
            raise PredictionsUnavailable(f"Redis, where predictions are, cannot be reached: {error}") from error
        except (RunLost, ValueError, KeyError, TypeError) as error:
            raise PredictionsUnavailable(f"job {job!r}: {error}") from error

    async def _fetch(self, job: str, names: Mapping[int, str] | None) -> tuple[bytes | None, list[bytes | None]]:
        """The pointer, and with it the values of these blocks."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.get(current_key(job))
        if names:
            pipe.mget(list(names.values()))
        pointer, *values = await pipe.execute()
        return pointer, values[0] if values else []


def _check(job: str, keys: Sequence[str], field: str) -> None:
    if not _JOB.fullmatch(job):
        raise InvalidRequest("job", f"is {job[:64]!r}; must be a job's name: lower case letters, digits and dashes")
    if not 1 <= len(keys) <= MAX_KEYS:
        raise InvalidRequest(field, f"has {len(keys)} keys; must have 1 to {MAX_KEYS:,}")
    for i, key in enumerate(keys):
        if not 1 <= len(key) <= _MAX_KEY:
            name = field if field != "keys" else f"keys[{i}]"
            raise InvalidRequest(name, f"has {len(key)} characters; must have 1 to {_MAX_KEY}")
