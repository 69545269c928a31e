"""Reading published predictions, apart from how Redis is called: which values to fetch, and what they say.

    pointer -> Run (`runs.Run.from_json`) -> `wanted` gives the blocks of the keys -> their values -> `found`

All keys of one read come from the one run that the pointer named. A run that is superseded meanwhile still has its
blocks, since they live on for days. Needs neither Spark nor torch; `Predictions` does the calls for synchronous users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import redis

from batch_scorer.blocks import BlockCorrupt, block_of, decode, row_of
from batch_scorer.runs import Run, block_key, current_key


class UnknownJob(Exception):
    """No run of the job is published."""


class RunLost(Exception):
    """Redis does not hold what the pointer points to."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old a run's cut-off is, in seconds, and whether that is more than its job allows."""

    age_s: float
    stale: bool


@dataclass(frozen=True, slots=True)
class Predicted:
    """One read: the run, and for each key asked for, in order, its outputs by name or None where the key is unknown."""

    run: Run
    values: tuple[dict[str, object] | None, ...]


def freshness(run: Run, now_us: int) -> Freshness:
    age_s = (now_us - run.cutoff_us) / 1e6
    return Freshness(age_s, age_s > run.max_age_s)


def wanted(run: Run, keys: Sequence[str]) -> dict[int, str]:
    """The blocks that hold these keys: number -> key in Redis, each once."""
    return {block: block_key(run.run, block) for block in (block_of(key, run.blocks) for key in keys)}


def found(run: Run, keys: Sequence[str], values: Mapping[int, bytes | None]) -> Predicted:
    """What the values of the wanted blocks say of the keys. Raises RunLost where a block is missing or damaged."""
    schema, rows = run.schema, {}
    for block, value in values.items():
        if value is None:
            raise RunLost(f"block {block} of run {run.run} is not in Redis")
        try:
            rows[block] = decode(value, schema)
        except BlockCorrupt as error:
            raise RunLost(f"block {block} of run {run.run}: {error}") from error
    return Predicted(run, tuple(row_of(key, rows[block_of(key, run.blocks)]) for key in keys))


class Predictions:
    """Reads from a Redis, synchronously."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def read(self, job: str, keys: Sequence[str]) -> Predicted:
        """Predictions of `keys`, all from one run. Raises UnknownJob, RunLost, redis.exceptions.RedisError."""
        pointer = self._redis.get(current_key(job))
        if pointer is None:
            raise UnknownJob(f"job {job!r} has no published run")
        run = Run.from_json(pointer)
        blocks = wanted(run, keys)
        values = cast(list[bytes | None], self._redis.mget(list(blocks.values()))) if blocks else []
        return found(run, keys, dict(zip(blocks, values, strict=True)))
