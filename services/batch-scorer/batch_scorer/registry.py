"""The runs of jobs in Redis: who may work on a job, which run is current, what has been superseded.

Every move of a pointer is one script. The fence is a number that grows with every lease: a driver that was paused
while another took the lease finds a greater fence and can neither publish nor mark its rows as counted. What its
executors may still write belongs to its own run and expires.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from batch_scorer.blocks import ROWS_AT, encode
from batch_scorer.errors import InputError, JobBusy, StorageError, Superseded
from batch_scorer.runs import JOBS, Run, block_key, current_key, fence_key, lease_key, pace_key, runs_key

#: Blocks that one script looks at: some 0.3 ms, so that online reads hardly wait for it.
_CHUNK = 200

_ACQUIRE = """
local held = redis.call('GET', KEYS[1])
if held then
  -- its own: the reply was lost and the client asks again
  local own = string.match(held, '^%d+ (.*)$') == ARGV[1]
  return {own and 1 or 0, held, redis.call('PTTL', KEYS[1])}
end
local last = redis.call('GET', KEYS[2])
local fence = (last and tonumber(string.match(last, '^%d+')) or 0) + 1
local token = string.format('%d %s', fence, ARGV[1])
redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
redis.call('SET', KEYS[2], token)
return {1, token, 0}
"""
_RENEW = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
_RECORD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('SADD', KEYS[3], ARGV[4])
return 1
"""
_PUBLISH = """
local last = redis.call('GET', KEYS[1])
if last ~= ARGV[1] then return {'fenced', last or 'nobody'} end
local new = cjson.decode(ARGV[3])
local pointer = redis.call('GET', KEYS[2])
local previous = ''
if pointer then
  local current = cjson.decode(pointer)
  if current.run == new.run then return {'ok', current.previous} end
  if current.cutoff_us > new.cutoff_us and ARGV[4] == '0' then return {'older', current.run} end
  previous = current.run
  local known = redis.call('HGET', KEYS[3], previous)
  if known then
    -- not by cjson.encode, which rounds numbers of 16 digits
    known = string.gsub(known, '"superseded_us":%d+', '"superseded_us":' .. ARGV[5], 1)
    redis.call('HSET', KEYS[3], previous, known)
  end
end
local text = string.gsub(ARGV[3], '"previous":""', '"previous":"' .. previous .. '"', 1)
redis.call('SET', KEYS[2], text)
redis.call('HSET', KEYS[3], ARGV[2], text)
return {'ok', previous}
"""
_ROLL_BACK = """
local text = redis.call('HGET', KEYS[2], ARGV[1])
if not text then return {'unknown', ''} end
local pointer = redis.call('GET', KEYS[1])
if pointer ~= ARGV[2] then return {'moved', ''} end
local now, before = '"superseded_us":%d+', cjson.decode(pointer).run
text = string.gsub(text, now, '"superseded_us":0', 1)
pointer = string.gsub(pointer, now, '"superseded_us":' .. ARGV[3], 1)
redis.call('SET', KEYS[1], text)
redis.call('HSET', KEYS[2], ARGV[1], text, before, pointer)
return {'ok', ''}
"""
# KEYS: pointer, blocks...; ARGV: run, milliseconds
_EXPIRE = """
local pointer = redis.call('GET', KEYS[1])
if pointer and cjson.decode(pointer).run == ARGV[1] then return -1 end
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return #KEYS - 1
"""
# KEYS: blocks...; ARGV: first and last byte of the count of rows, whether they shall not expire any more
_COUNT = """
local rows, missing = 0, {}
for i = 1, #KEYS do
  local head = redis.call('GETRANGE', KEYS[i], ARGV[1], ARGV[2])
  if #head == 4 then
    rows = rows + struct.unpack('<I4', head)
    if ARGV[3] == '1' then redis.call('PERSIST', KEYS[i]) end
  else missing[#missing + 1] = i - 1 end
end
return {rows, missing}
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a job: `token` is the fence and the run."""

    job: str
    run: str
    token: str


@dataclass(frozen=True, slots=True)
class Counted:
    """What Redis holds of a run."""

    rows: int
    missing: tuple[int, ...]


class Registry:
    """The runs of all jobs in one Redis. Every method raises redis.exceptions.RedisError where Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def acquire(self, job: str, run: str, lease_s: float, wait_s: float) -> Lease:
        """The job's lease, waiting for one that is about to expire (a driver was killed). Raises JobBusy."""
        end = time.monotonic() + wait_s
        while True:
            keys = [lease_key(job), fence_key(job)]
            given, token, left_ms = self._eval(_ACQUIRE, keys, run, int(lease_s * 1_000))
            if given:
                return Lease(job, run, token.decode())
            if time.monotonic() >= end:
                holder = token.decode().partition(" ")[2]
                raise JobBusy(f"job {job}: run {holder} is at work; its lease goes on for {left_ms / 1_000:.1f} s")
            time.sleep(min(0.2, max(0.01, left_ms / 1_000)))

    def renew(self, lease: Lease, lease_s: float) -> bool:
        """Whether the lease is still this run's; if so it now lasts `lease_s` from now."""
        keys = [lease_key(lease.job), fence_key(lease.job)]
        return bool(self._eval(_RENEW, keys, lease.token, int(lease_s * 1_000)))

    def release(self, lease: Lease) -> None:
        self._eval(_RELEASE, [lease_key(lease.job)], lease.token)

    def at_work(self, job: str) -> str:
        """The run that holds the job's lease, or an empty text."""
        held = cast(bytes | None, self._redis.get(lease_key(job)))
        return held.decode().partition(" ")[2] if held else ""

    def record(self, lease: Lease, run: Run) -> None:
        """Write what is known of a run, before and after its rows are written. Raises Superseded."""
        keys = [fence_key(run.job), runs_key(run.job), JOBS]
        if not self._eval(_RECORD, keys, lease.token, run.run, run.to_json(), run.job):
            raise Superseded(f"run {run.run}: a newer run took over the job; this one stops")

    def publish(self, lease: Lease, run: Run, force: bool) -> str:
        """Point to `run`, whole and counted; returns the run it took the pointer from, or an empty text.

        Raises Superseded where another run has the fence, or where a newer cut-off is published and `force` is not
        given.
        """
        keys = [fence_key(run.job), current_key(run.job), runs_key(run.job)]
        answer, other = self._eval(_PUBLISH, keys, lease.token, run.run, run.to_json(), int(force), run.published_us)
        if answer == b"fenced":
            raise Superseded(f"run {run.run}: {other.decode()} took over the job (fence and run); not published")
        if answer == b"older":
            raise Superseded(
                f"run {run.run}: {other.decode()} with a newer cut-off is published; --force REASON replaces it"
            )
        return str(other.decode())

    def roll_back(self, job: str, to: str, expire_s: int) -> tuple[Run, Run]:
        """Point to an earlier run, whole and counted; `to` empty: the one that the current run replaced.

        The run before now expires as every superseded run. Returns it and the run now.

        Raises InputError where there is no such run, StorageError where its rows have expired.
        """
        while True:
            pointer = cast(bytes | None, self._redis.get(current_key(job)))
            if pointer is None:
                raise InputError(f"job {job!r}: no run is published, there is nothing to roll back")
            current, runs = Run.from_json(pointer), self.runs(job)
            target = to or current.previous
            if not target:
                raise InputError(f"job {job}: {current.run} replaced no run; name one with --to: {_listed(runs)}")
            if target == current.run:
                raise InputError(f"job {job}: {target} is the current run already")
            run = runs.get(target)
            if run is None or run.state != "written":
                raise InputError(f"job {job}: {target!r} is no run to go back to; there are {_listed(runs)}")
            self._whole(run)
            keys = [current_key(job), runs_key(job)]
            answer, _ = self._eval(_ROLL_BACK, keys, target, pointer, time.time_ns() // 1_000)
            if answer == b"ok":
                self._whole(run)  # an expiry that was being set meanwhile is taken away again
                self.expire(current, expire_s)
                return current, run

    def current(self, job: str) -> Run | None:
        """The published run."""
        pointer = cast(bytes | None, self._redis.get(current_key(job)))
        return Run.from_json(pointer) if pointer else None

    def runs(self, job: str) -> dict[str, Run]:
        """Every run that has or had rows here, the newest first."""
        found = cast(dict[bytes, bytes], self._redis.hgetall(runs_key(job)))
        runs = [Run.from_json(text) for text in found.values()]
        return {run.run: run for run in sorted(runs, key=lambda r: -r.created_us)}

    def jobs(self) -> list[str]:
        """Jobs that had a run."""
        return sorted(job.decode() for job in cast(set[bytes], self._redis.smembers(JOBS)))

    def count(self, run: Run, keep: bool = False) -> Counted:
        """What Redis holds of a run, from the blocks' own headers; `keep`: they do not expire any more."""
        rows, missing = 0, []
        for first, keys in _chunks(run):
            part, absent = self._eval(_COUNT, keys, *ROWS_AT, int(keep))
            rows += part
            missing += [first + i for i in absent]
        return Counted(rows, tuple(missing))

    def fill(self, run: Run, blocks: Sequence[int], expire_s: int) -> None:
        """Write these blocks without rows: keys that the run does not know are then known to be unknown."""
        empty = encode(_no_rows(run))
        for first in range(0, len(blocks), _CHUNK):
            pipe = self._redis.pipeline(transaction=False)
            for block in blocks[first : first + _CHUNK]:
                pipe.set(block_key(run.run, block), empty, px=expire_s * 1_000, nx=True)
            pipe.execute()

    def expire(self, run: Run, after_s: int) -> bool:
        """Let a run's rows expire; False where it is the current one, whose rows stay."""
        for _, keys in _chunks(run):
            if self._eval(_EXPIRE, [current_key(run.job), *keys], run.run, after_s * 1_000) < 0:
                self._whole(run)
                return False
        return True

    def expire_others(self, current: Run, after_s: int) -> None:
        """Let the rows of all other whole runs expire that do not yet; a run at work has its own expiry."""
        for run in self.runs(current.job).values():
            if run.run != current.run and run.state == "written":
                self.expire_if_kept(run, after_s)

    def expire_if_kept(self, run: Run, after_s: int) -> None:
        """Let a run's rows expire, unless they do already: a time that is set is not put off."""
        if self._redis.ttl(block_key(run.run, run.blocks - 1)) == -1:  # the last that `expire` comes to
            self.expire(run, after_s)

    def delete(self, run: Run) -> None:
        """Delete a run's rows and what is known of it. The caller sees to it that nobody reads or writes it."""
        self.delete_rows(run)
        self._redis.hdel(runs_key(run.job), run.run)

    def delete_rows(self, run: Run) -> None:
        """Delete a run's rows; the run stays known, so that prune finds what is written of it later."""
        for _, keys in _chunks(run):
            self._redis.unlink(*keys)
        self._redis.unlink(pace_key(run.run))

    def _whole(self, run: Run) -> None:
        counted = self.count(run, keep=True)
        if counted.missing or counted.rows != run.rows:
            raise StorageError(
                f"run {run.run}: Redis holds {counted.rows:,} of its {run.rows:,} rows ({len(counted.missing)} of "
                f"{run.blocks} blocks are gone); run the job for its cut-off again with --force REASON"
            )

    def _eval(self, script: str, keys: Sequence[str], *args: str | bytes | int) -> Any:  # Any: a script's own reply
        return self._redis.eval(script, len(keys), *keys, *args)


def _chunks(run: Run) -> Iterator[tuple[int, list[str]]]:
    """(first block, the names of so many blocks)."""
    for first in range(0, run.blocks, _CHUNK):
        yield first, [block_key(run.run, block) for block in range(first, min(first + _CHUNK, run.blocks))]


def _no_rows(run: Run) -> Any:  # a pyarrow.RecordBatch
    import pyarrow as pa

    return pa.RecordBatch.from_pylist([], schema=run.schema)


def _listed(runs: dict[str, Run]) -> str:
    return ", ".join(name for name, run in runs.items() if run.state == "written") or "none"
