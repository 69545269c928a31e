"""Which views a version of the feature state holds whole: those that it began with and that writers have kept since.

A view that a writer of the version does not keep is struck off: it misses events from then on. It comes back by a
rebuild, which begins a new version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import redis

from feature_store import keys as names
from feature_store.definitions import FeaturePlan
from feature_store.plan_union import fingerprints

_FIELD = "views"
# KEYS: the version's info. ARGV: field, views that the writer keeps, by name their fingerprints (JSON).
_KEEP = """
local text = redis.call('HGET', KEYS[1], ARGV[1])
if not text then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  return ARGV[2]
end
local whole, kept, struck = cjson.decode(text), cjson.decode(ARGV[2]), false
for name, definition in pairs(whole) do
  if kept[name] ~= definition then whole[name] = nil; struck = true end
end
if not struck then return text end
text = next(whole) and cjson.encode(whole) or '{}'
redis.call('HSET', KEYS[1], ARGV[1], text)
return text
"""


def record(client: redis.Redis, version: str, plan: FeaturePlan) -> None:
    """A rebuild wrote these views, whole."""
    client.hset(names.version_info(version), _FIELD, json.dumps(fingerprints(plan)))


def keep(client: redis.Redis, version: str, plan: FeaturePlan) -> dict[str, str]:
    """A writer of the version keeps these views from now on; what is whole then. A version without a record begins.

    Raises redis.exceptions.RedisError.
    """
    kept = json.dumps(fingerprints(plan))
    found: dict[str, str] = json.loads(cast(bytes, client.eval(_KEEP, 1, names.version_info(version), _FIELD, kept)))
    return found


@dataclass(frozen=True, slots=True)
class StateViews:
    """The served version and its whole views, by name their definitions' fingerprints; None: nobody has said."""

    version: str
    whole: dict[str, str] | None


def served(client: redis.Redis) -> StateViews:
    """Raises redis.exceptions.RedisError."""
    version = cast(bytes, client.get(names.VERSION_POINTER) or names.FIRST_VERSION.encode()).decode()
    text = cast(bytes | None, client.hget(names.version_info(version), _FIELD))
    return StateViews(version, None if text is None else json.loads(text))


def absorbed_until(client: redis.Redis, entities: Sequence[str], shards: int) -> int:
    """Wall clock, microseconds: what was recorded before is in the served state; 0 where a shard has not begun.

    Raises redis.exceptions.RedisError.
    """
    version = cast(bytes, client.get(names.VERSION_POINTER) or names.FIRST_VERSION.encode()).decode()
    pipe = client.pipeline(transaction=False)
    for entity in entities:
        for shard in range(shards):
            pipe.hget(names.meta(entity, shard, version), "progress_us")
    return min((int(found or 0) for found in pipe.execute()), default=0)
