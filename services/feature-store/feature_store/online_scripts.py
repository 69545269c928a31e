"""The scripts that run inside Redis for online reads: each is one atomic step."""

from __future__ import annotations

# KEYS: the version pointer; then per request: ledger, then per view: meta, state and, if the view has one, tail.
# ARGV: version, first version, lease ms, lateness, max step, ledger ttl ms, tail ttl ms, views; then per view: 1 if it
# has a tail, 1 if its meta's clock judges the event's time; then per request: fingerprint, event time, the event's
# field in the tails, and per tail the event's entry.
# Gives {current version} if it is another one, having done nothing; else {false, metas, rows}. A meta is offset, clock,
# progress, topic id. A row is verdict, what is told of it, and for verdict 0 per view: place in metas, state[, tail].
READ = """
local current = redis.call('GET', KEYS[1]) or ARGV[2]
if current ~= ARGV[1] then return {current} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease, lateness, step, views = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[8])
local tailed, judges = {}, {}
for v = 1, views do
  tailed[v] = ARGV[7 + 2 * v] == '1'
  judges[v] = ARGV[8 + 2 * v] == '1'
end
local metas, place, grown = {}, {}, {}
local out = {}
local k, a = 2, 9 + 2 * views
while k <= #KEYS do
  local ledger, fingerprint, at, id = KEYS[k], ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2]
  k, a = k + 1, a + 3
  local seen = redis.call('GET', ledger)
  local verdict, told = 0, false
  if seen then
    if string.sub(seen, 1, 16) ~= fingerprint then verdict = 3
    elseif string.sub(seen, 17, 17) == 'D' then verdict = 1; told = string.sub(seen, 18)
    elseif tonumber(string.sub(seen, 18)) > now then verdict = 2 end
  end
  local first = k
  for v = 1, views do
    local name = KEYS[k]
    k = k + (tailed[v] and 3 or 2)
    if verdict == 0 then
      local p = place[name]
      if not p then
        p = #metas + 1
        metas[p] = redis.call('HMGET', name, 'offset', 'clock', 'progress_us', 'topic_id')
        place[name] = p
      end
      local told_clock = metas[p][2]
      if judges[v] and told_clock then
        local clock = tonumber(told_clock)
        if clock >= 0 and at < clock - lateness then verdict = 4; told = told_clock
        elseif clock >= 0 and at > clock + step then verdict = 5; told = told_clock end
      end
    end
  end
  local row = {verdict, told}
  if verdict == 0 then
    redis.call('SET', ledger, fingerprint .. 'P' .. string.format('%.0f', now + lease), 'PX', ARGV[6])
    local n = 2
    k = first
    for v = 1, views do
      local name = KEYS[k]
      row[n + 1], row[n + 2] = place[name], redis.call('GET', KEYS[k + 1])
      n, k = n + 2, k + 2
      if tailed[v] then
        local tail = KEYS[k]
        if redis.call('HSETNX', tail, id, ARGV[a]) == 1 then
          grown[name] = (grown[name] or 0) + 1
          redis.call('PEXPIRE', tail, ARGV[7])
        end
        row[n + 1] = redis.call('HGETALL', tail)
        n, k, a = n + 1, k + 1, a + 1
      end
    end
  else
    for v = 1, views do if tailed[v] then a = a + 1 end end
  end
  out[#out + 1] = row
end
for name, count in pairs(grown) do redis.call('HINCRBY', name, 'tails', count) end
return {false, metas, out}
"""

# KEYS: tail, meta. ARGV: fields that the state holds already.
TIDY = """
local removed = redis.call('HDEL', KEYS[1], unpack(ARGV))
if removed > 0 then redis.call('HINCRBY', KEYS[2], 'tails', -removed) end
"""
