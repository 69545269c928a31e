"""Versions of the feature state: which there are, how a new one comes to be served, how old ones go.

    begin  →  states and positions are written, unseen  →  offer: workers follow the logs for it too  →  serve

`serve` moves the pointer in one atomic step, which takes place only if the new version has absorbed every shard's log
at least as far as the old one: what the old one has taken out of the tails the new one has, and what neither has yet
the tails hold for both. Close to that moment the old version is asked to wait (`keys.HOLD`), so that it comes.

Of several rebuilds only the one begun last can be served. One that died leaves keys that nobody reads; the next `begin`
deletes them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import cast

import redis

from feature_store import keys as names
from feature_store.definitions import FeaturePlan

LEASE_MS = 30_000
_HOLD_MS = 3_000
_HOLD_WITHIN = 5_000
"""Log entries behind which the new version passes the old one within a moment."""
_LOOK_EVERY_S = 0.05
_SCANNED = 5_000
# Whoever read the pointer just before it moved is done by then.
_LAST_READS_S = 2.0


class RebuildSuperseded(Exception):
    """Another rebuild was begun after this one, or Redis was emptied; nothing of this one is served."""


class NotCaughtUp(Exception):
    """No worker has brought the new version up to date in time; the old one is served on. The message says how far."""


@dataclass(frozen=True, slots=True)
class CatchUp:
    """How far the new version is: log entries that the old one has and it has not, and shards nobody follows yet."""

    behind: int
    waiting_shards: int


# KEYS: pointer, next, hold, rebuilding; then of every shard the old version's meta and the new one's.
# ARGV: new version, old version, first version, '1' to serve it however far it is.
_SERVE = """
if redis.call('GET', KEYS[4]) ~= ARGV[1] then return {'superseded', 0, 0} end
if (redis.call('GET', KEYS[1]) or ARGV[3]) ~= ARGV[2] then return {'superseded', 0, 0} end
local behind, waiting, claimed = 0, 0, false
local tails = {}
for k = 5, #KEYS, 2 do
  local old = redis.call('HMGET', KEYS[k], 'offset', 'topic_id', 'epoch', 'tails')
  local new = redis.call('HMGET', KEYS[k + 1], 'offset', 'topic_id', 'progress_us')
  if old[3] then claimed = true end
  if not new[3] or (old[2] and old[2] ~= new[2]) then waiting = waiting + 1
  elseif old[1] then behind = behind + math.max(tonumber(old[1]) - tonumber(new[1]), 0) end
  tails[k] = old[4]
end
-- Where nobody has ever written the old version nobody follows the new one either, and nobody reads.
if ARGV[4] ~= '1' and claimed and (behind > 0 or waiting > 0) then return {'behind', behind, waiting} end
for k = 5, #KEYS, 2 do
  if tails[k] then redis.call('HSET', KEYS[k + 1], 'tails', tails[k]) end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return {'served', 0, claimed and 1 or 0}
"""

# KEYS: the key to set, rebuilding; ARGV: version, lease ms
_LEASE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


def served_version(client: redis.Redis) -> str:
    return cast(bytes, client.get(names.VERSION_POINTER) or names.FIRST_VERSION.encode()).decode()


def begin(client: redis.Redis) -> str:
    """A version number never used before, in the name of the rebuild begun last; what earlier ones left is deleted."""
    # The first version is the one that begins empty: a replay of decisions relies on that.
    client.set(names.LAST_VERSION, served_version(client), nx=True)
    version = str(client.incr(names.LAST_VERSION))
    client.set(names.REBUILDING, version)
    client.delete(names.NEXT_POINTER, names.HOLD)
    delete_all_but(client, {served_version(client), version})
    return version


def write_positions(
    client: redis.Redis, version: str, base: str, positions: Mapping[tuple[str, int], Mapping[str, str | int]]
) -> None:
    """The meta hash of every (entity, shard): `base` and where its log goes on."""
    pipe = client.pipeline(transaction=False)
    for (entity, shard), position in positions.items():
        pipe.hset(names.meta(entity, shard, version), mapping=dict([*position.items(), ("base", base)]))
    pipe.execute()


def serve(
    client: redis.Redis,
    plan: FeaturePlan,
    shards: int,
    version: str,
    wait_s: float,
    at_once: bool = False,
    told: Callable[[CatchUp], None] = lambda catch_up: None,
) -> None:
    """Offer the version to the workers, wait until it is up to date, serve it, and delete the one before.

    `at_once`: serve it as it is, for workers to bring up to date afterwards. `told` is called now and then. Raises
    NotCaughtUp after `wait_s` seconds, RebuildSuperseded, redis.exceptions.RedisError.
    """
    lease, serving = client.register_script(_LEASE), client.register_script(_SERVE)
    old = served_version(client)
    shard_keys = [
        names.meta(entity.name, shard, v) for entity in plan.entities for shard in range(shards) for v in (old, version)
    ]
    keys = [names.VERSION_POINTER, names.NEXT_POINTER, names.HOLD, names.REBUILDING, *shard_keys]
    deadline = time.monotonic() + wait_s
    leased = held = 0.0
    hold_for_s = _HOLD_MS / 1000
    try:
        while True:
            status, behind, waiting = serving(keys=keys, args=[version, old, names.FIRST_VERSION, int(at_once)])
            if status == b"served":
                was_read = bool(waiting)
                break
            if status == b"superseded":
                raise RebuildSuperseded(f"state version {version}: another rebuild was begun, or Redis was emptied")
            told(CatchUp(int(behind), int(waiting)))
            now = time.monotonic()
            if now > deadline:
                raise NotCaughtUp(_reason(version, int(behind), int(waiting), shards * len(plan.entities), wait_s))
            if now - leased > LEASE_MS / 3000:
                leased = now
                if not lease(keys=[names.NEXT_POINTER, names.REBUILDING], args=[version, LEASE_MS]):
                    continue
            # For a while the old version stands still; then it has to go on for as long, whatever came of it.
            if waiting == 0 and behind < _HOLD_WITHIN and now - held > 2 * hold_for_s:
                held = now
                lease(keys=[names.HOLD, names.REBUILDING], args=[version, _HOLD_MS])
            time.sleep(_LOOK_EVERY_S)
    except BaseException:
        # Workers need not follow what nobody will serve.
        if client.get(names.REBUILDING) == version.encode():
            client.delete(names.NEXT_POINTER, names.HOLD)
        raise
    if was_read:
        time.sleep(_LAST_READS_S)
    delete_all_but(client, {version})


def delete_all_but(client: redis.Redis, kept: Collection[str]) -> int:
    """Delete the states and positions of every version not in `kept`; how many keys."""
    of_version = re.compile(rb"\{[^}]*\}[sm]:(\d+)(?::|$)")
    pipe, deleted = client.pipeline(transaction=False), 0
    for key in client.scan_iter(match="{*}[sm]:*", count=_SCANNED):
        found = of_version.match(key)
        if found is None or found[1].decode() in kept:
            continue
        pipe.unlink(key)
        deleted += 1
        if len(pipe) >= _SCANNED:
            pipe.execute()
    pipe.execute()
    return deleted


def _reason(version: str, behind: int, waiting: int, of: int, wait_s: float) -> str:
    if waiting:
        return (
            f"state version {version}: no worker has followed {waiting} of {of} shards within {wait_s:g} s; start the"
            " stream worker and rebuild again, or serve it at once and let workers bring it up to date afterwards"
        )
    return (
        f"state version {version}: still {behind} log entries behind after {wait_s:g} s; the old version is served on"
    )
