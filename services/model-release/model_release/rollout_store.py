"""The pointer in Redis, and what processes report of themselves there.

trine:models:<model>:pointer     the pointer (JSON); moved by compare and set, never expires
trine:process:<kind>:<name>      what a process has loaded (JSON); expires unless it is said again
trine:processes                  sorted set: <kind>:<name> by when its report expires, milliseconds
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import redis
from feature_store.state_views import StateViews, absorbed_until, served
from redis.backoff import NoBackoff
from redis.retry import Retry

from model_release.rollout import Pointer, PointerMoved

PROCESSES = "trine:processes"
EXPIRES_S = 15.0
"""A process that has not reported for so long counts as gone."""
REPORT_EVERY_S = 2.0

GATEWAY, REGISTRAR, WORKER = "gateway", "registrar", "worker"

# KEYS: pointer. ARGV: generation and current release that the mover saw, the new pointer.
_MOVE = """
local text = redis.call('GET', KEYS[1])
if not text then return '' end
local now = cjson.decode(text)
if now.generation ~= tonumber(ARGV[1]) or now.current ~= ARGV[2] then return text end
redis.call('SET', KEYS[1], ARGV[3])
return false
"""


def process_name() -> str:
    """Of this process, for its reports: unique among those that live."""
    return f"{socket.gethostname()}/{os.getpid()}"


def rollout_client(url: str) -> redis.Redis:
    """For a process that must not wait for a Redis that is away: it asks again later by itself."""
    return redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0))


def pointer_key(model: str) -> str:
    return f"trine:models:{model}:pointer"


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """One process. `releases`: by id an empty text where it is loaded, else why it is not.

    Of gateways, `generation`: of the pointer that it serves by, 0 where it cannot; `needs`: by release its views and
    their definitions' fingerprints; `since_us`: since when it appends every event to the tails of all views that it
    reads; `entities`, `shards`: of the state that it reads. Of workers, `keeps`: the views that it brings up to date.
    """

    kind: str
    name: str
    model: str = ""
    releases: Mapping[str, str] = field(default_factory=dict)
    generation: int = 0
    needs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    keeps: Mapping[str, str] = field(default_factory=dict)
    since_us: int = 0
    entities: tuple[str, ...] = ()
    shards: int = 0

    @property
    def shown(self) -> str:
        return f"{self.kind} {self.name}"

    @classmethod
    def from_json(cls, text: str | bytes) -> ProcessReport:
        """Raises ValueError or TypeError."""
        found: dict[str, Any] = json.loads(text)  # Any: JSON
        found["entities"] = tuple(found.get("entities", ()))
        return cls(**{name: value for name, value in found.items() if name in cls.__dataclass_fields__})


class RolloutStore:
    """Pointers and reports in one Redis. Every method raises redis.exceptions.RedisError where it is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def read(self, model: str) -> Pointer | None:
        """Where the pointer stands. Raises ValueError for one that is damaged."""
        text = cast(bytes | None, self._redis.get(pointer_key(model)))
        if text is None:
            return None
        try:
            return Pointer.from_json(text)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{pointer_key(model)} in Redis is no pointer: {error!r}") from error

    def state_views(self) -> StateViews:
        """What the served feature state has."""
        return served(self._redis)

    def absorbed_until(self, reports: Sequence[ProcessReport]) -> int:
        """What was recorded before this time (microseconds) is in the state of all entities that gateways read."""
        entities = sorted({entity for report in reports for entity in report.entities})
        return absorbed_until(self._redis, entities, max((report.shards for report in reports), default=0))

    def begin(self, pointer: Pointer) -> Pointer:
        """Write it where there is none; the pointer that stands then."""
        self._redis.set(pointer_key(pointer.model), pointer.to_json(), nx=True)
        return self.read(pointer.model) or pointer

    def move(self, before: Pointer, after: Pointer, who: str) -> Pointer:
        """Put `after` where `before` stands, as the next generation; PointerMoved where it stands there no more."""
        moved = replace(after, generation=before.generation + 1, moved_us=time.time_ns() // 1_000, who=who)
        found = self._redis.eval(
            _MOVE, 1, pointer_key(before.model), str(before.generation), before.current, moved.to_json()
        )
        if found is None:
            return moved
        if not found:
            raise PointerMoved(f"{pointer_key(before.model)} is gone from Redis; gateways write it again: look then")
        now = Pointer.from_json(cast(bytes, found))
        raise PointerMoved(
            f"{before.model}: the pointer was moved meanwhile: generation {before.generation} is now {now.generation}"
            f"{f', by {now.who}' if now.who else ''}, current {now.current}; see `trine release status`, decide again"
        )

    def report(self, report: ProcessReport, expires_s: float = EXPIRES_S) -> None:
        name = f"{report.kind}:{report.name}"
        now_ms, lasts_ms = time.time_ns() // 1_000_000, int(expires_s * 1_000)
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(f"trine:process:{name}", json.dumps(asdict(report), separators=(",", ":")), px=lasts_ms)
        pipe.zadd(PROCESSES, {name: now_ms + lasts_ms})
        pipe.zremrangebyscore(PROCESSES, 0, now_ms - 1)
        pipe.execute()

    def withdraw(self, kind: str, name: str) -> None:
        """The process ends."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.delete(f"trine:process:{kind}:{name}")
        pipe.zrem(PROCESSES, f"{kind}:{name}")
        pipe.execute()

    def reports(self, model: str) -> list[ProcessReport]:
        """Of live processes that have to do with the model, by kind and name."""
        names = cast(list[bytes], self._redis.zrange(PROCESSES, 0, -1))
        keys = [b"trine:process:" + name for name in names]
        texts = cast(list[bytes | None], self._redis.mget(keys)) if keys else []
        found = [ProcessReport.from_json(text) for text in texts if text is not None]
        return sorted((r for r in found if r.model in ("", model)), key=lambda r: (r.kind, r.name))
