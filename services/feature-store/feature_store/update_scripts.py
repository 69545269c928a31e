"""The scripts that run inside Redis for writers of state: each is one atomic step, and does nothing where it refuses.

A writer follows one version by a pointer (`keys.VERSION_POINTER`, or `NEXT_POINTER` during a rebuild). Where that names
another one every script says `superseded`: so from the moment at which a version is no longer served nobody takes
events out of the tails on its behalf.
"""

from __future__ import annotations

# A shard whose history is lost (`lost` in its meta) takes events, but says no progress: readers know it by that.

# KEYS: meta, pointer; ARGV: owner, topic, topic id, unset clock, version, '1' if an absent pointer is to be set,
# the base that the state is known to have had ('' none).
CLAIM = """
local current = redis.call('GET', KEYS[2])
if not current and ARGV[6] == '1' then current = ARGV[5]; redis.call('SET', KEYS[2], current) end
if current ~= ARGV[5] then return {'superseded'} end
local m = redis.call('HMGET', KEYS[1], 'topic_id', 'offset', 'clock', 'progress_us', 'base')
local offset, clock = m[2], m[3]
if not offset then offset = '0'; clock = ARGV[4] end
if m[1] and m[1] ~= '' and m[1] ~= ARGV[3] then offset = '0' end
if ARGV[7] ~= '' and not m[5] then
  redis.call('HSET', KEYS[1], 'lost', ARGV[7])
  redis.call('HDEL', KEYS[1], 'progress_us')
  m[4] = false
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'topic', ARGV[2], 'topic_id', ARGV[3], 'offset', offset, 'clock', clock)
return {'ok', epoch, tonumber(offset), clock, m[4] or '0', m[5] or '', redis.call('HGET', KEYS[1], 'lost') or ''}
"""

# KEYS: meta, pointer, states..., tails...; ARGV: epoch, owner, expected, next, clock, progress, version, states n,
# blobs..., then for each tail: number of ids, ids...
APPLY = """
local m = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'offset', 'lost')
if not m[1] then return {'moved', 0} end
if redis.call('GET', KEYS[2]) ~= ARGV[7] then return {'superseded', 0} end
if tonumber(m[1]) > tonumber(ARGV[1]) then return {'fenced', 0} end
if m[1] ~= ARGV[1] or m[2] ~= ARGV[2] or m[3] ~= ARGV[3] then return {'moved', tonumber(m[3])} end
local n = tonumber(ARGV[8])
for i = 1, n do redis.call('SET', KEYS[2 + i], ARGV[8 + i]) end
local at = 9 + n
local removed = 0
for k = 3 + n, #KEYS do
  local count = tonumber(ARGV[at])
  for i = 1, count do removed = removed + redis.call('HDEL', KEYS[k], ARGV[at + i]) end
  at = at + 1 + count
end
redis.call('HSET', KEYS[1], 'offset', ARGV[4], 'clock', ARGV[5])
if not m[4] then redis.call('HSET', KEYS[1], 'progress_us', ARGV[6]) end
if removed > 0 then redis.call('HINCRBY', KEYS[1], 'tails', -removed) end
return {'ok', tonumber(ARGV[4])}
"""

# KEYS: meta, pointer; ARGV: epoch, owner, progress, version
HEARTBEAT = """
local m = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'progress_us', 'lost')
if not m[1] then return 'moved' end
if redis.call('GET', KEYS[2]) ~= ARGV[4] then return 'superseded' end
if tonumber(m[1]) > tonumber(ARGV[1]) then return 'fenced' end
if m[1] ~= ARGV[1] or m[2] ~= ARGV[2] then return 'moved' end
if m[4] then return 'ok' end
if not m[3] or tonumber(m[3]) < tonumber(ARGV[3]) then redis.call('HSET', KEYS[1], 'progress_us', ARGV[3]) end
return 'ok'
"""
