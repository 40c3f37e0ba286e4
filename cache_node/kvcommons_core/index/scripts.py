"""The Lua that runs inside Redis. Every script touches one key or, where it names several, keys that only a standalone server sees.

No script reads the clock: moments are arguments, so that replicas compute the same and tests can move time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from kvcommons_core import limits


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name by which Redis remembers it."""

    name: str
    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


APPLY: Final = Script(
    "apply",
    f"""
-- KEYS: holder keys. ARGV: now (16-s units), age cap (units), TTL (ms), then for each key '+' or '-' and the 8 bytes of a holder.
-- '+' puts the holder in its place (ascending by slot), '-' takes it out; both drop what is over the age cap. '=' keeps the key for one
-- more TTL. Returns how many keys changed.
local now, cap, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local changed = 0
local function apply(i, arg)
  local add = string.byte(arg, 1) == 43
  local holder = string.sub(arg, 2, 9)
  local slot, epoch = struct.unpack('<I2I2', holder)
  local old = redis.call('GET', KEYS[i]) or ''
  local kept, births = {{}}, {{}}
  local placed = not add
  for at = 1, #old - 7, 8 do
    local one = string.sub(old, at, at + 7)
    local s, e, _, _, born = struct.unpack('<I2I2BBI2', one)
    local age = (now - born) % 65536
    local fresh = age >= 32768 or age <= cap
    if s == slot then
      local ahead = (e - epoch) % 65536
      if add then
        if fresh and ahead > 0 and ahead < 32768 then   -- a late word of a former epoch: the newer one stays
          kept[#kept + 1] = one; births[#kept] = age >= 32768 and 0 or age; placed = true
        end
      elseif e ~= epoch and fresh and ahead < 32768 then
        kept[#kept + 1] = one; births[#kept] = age >= 32768 and 0 or age
      end
    elseif fresh then
      if not placed and s > slot then
        kept[#kept + 1] = holder; births[#kept] = -1; placed = true
      end
      kept[#kept + 1] = one; births[#kept] = age >= 32768 and 0 or age
    end
  end
  if not placed then kept[#kept + 1] = holder; births[#kept] = -1 end
  if #kept > {limits.HOLDERS_PER_KEY_MAX} then
    local oldest = 1
    for j = 2, #kept do if births[j] > births[oldest] then oldest = j end end
    table.remove(kept, oldest)
  end
  local new = table.concat(kept)
  if new ~= old then changed = changed + 1 end
  if new == '' then
    if old ~= '' then redis.call('DEL', KEYS[i]) end
  elseif add then
    redis.call('SET', KEYS[i], new, 'PX', ttl)
  elseif new ~= old then
    redis.call('SET', KEYS[i], new, 'KEEPTTL')
  end
end
for i = 1, #KEYS do
  local arg = ARGV[3 + i]
  if string.byte(arg, 1) == 61 then redis.call('PEXPIRE', KEYS[i], ttl) else apply(i, arg) end
end
return changed
""",
)

LOOKUP: Final = Script(
    "lookup",
    """
-- KEYS: holder keys of a chain, shallow to deep. ARGV: probes at most. Returns {index from 0, holders, index, holders, ...}.
-- Gallops to the first key without holders, bisects to the last one with holders, then bisects between probes whose holders differ
-- (in slot, epoch or tier), so that every depth at which a member's hold ends is found.
local n, budget = #KEYS, tonumber(ARGV[1])
local seen, shape, probes = {}, {}, 0
local function probe(i)
  if seen[i] == nil then
    probes = probes + 1
    local v = redis.call('GET', KEYS[i]) or ''
    seen[i] = v
    local parts = {}
    for at = 1, #v - 7, 8 do parts[#parts + 1] = string.sub(v, at, at + 4) end
    shape[i] = table.concat(parts)
  end
  return seen[i]
end
if n == 0 then return {} end
local low, high = 0, n + 1          -- low: deepest known to be held; high: shallowest known not to be
local at = 1
while at <= n do
  if probe(at) == '' then high = at; break end
  low = at
  if at == n then break end
  at = math.min(at * 2, n)
end
while high - low > 1 and probes < budget do
  local mid = math.floor((low + high) / 2)
  if probe(mid) == '' then high = mid else low = mid end
end
local stack = {}
local order = {}
for i in pairs(seen) do if i <= low then order[#order + 1] = i end end
table.sort(order)
for j = #order - 1, 1, -1 do stack[#stack + 1] = {order[j], order[j + 1]} end
while #stack > 0 and probes < budget do
  local pair = table.remove(stack)
  local a, b = pair[1], pair[2]
  if b - a > 1 and shape[a] ~= shape[b] then
    local mid = math.floor((a + b) / 2)
    probe(mid)
    stack[#stack + 1] = {mid, b}
    stack[#stack + 1] = {a, mid}
  end
end
local out = {}
for i = 1, n do
  if seen[i] then out[#out + 1] = i - 1; out[#out + 1] = seen[i] end
end
return out
""",
)

REGISTER: Final = Script(
    "register",
    """
-- KEYS[1]: members. ARGV: mode ('own' or 'shared'), name, info JSON, incarnation, now (s), rest (s), jump, epochs a slot at most,
-- own slot ('' for none), own epoch, own used, generation, then pairs of candidate slot and first epoch.
-- Returns {slot, epoch, used, incarnation, joined}; slot 0: no candidate was free, try others.
-- 'own': a process says that it begins anew (start, lost lease, fence). 'shared': joins what another process registered under the name.
local m = KEYS[1]
local mode, name, info, incarnation = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now, rest, jump, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local function parse(record)
  local e, u, s, inc, text = string.match(record, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
  return tonumber(e), tonumber(u), tonumber(s), inc, text
end
local function write(slot, epoch, used, inc)
  redis.call('HSET', m, slot, string.format('%d %d %d %s %s', epoch, used, now, inc, info), '@' .. name, slot)
  redis.call('HSETNX', m, '#g', ARGV[12])
  redis.call('HINCRBY', m, '#v', 1)
  return {tonumber(slot), epoch, used, inc, 0}
end
local slot = redis.call('HGET', m, '@' .. name)
local record = slot and redis.call('HGET', m, slot)
if record and ARGV[9] ~= '' and ARGV[9] ~= slot then
  -- A stale copy remembers a former slot of ours: how far that one had gone is forgotten, so it rests.
  local epoch, used = parse(record)
  redis.call('HSET', m, slot, string.format('%d %d %d - {}', epoch, used, now))
  record = false
end
if record then
  local epoch, used, seen, inc, text = parse(record)
  if mode == 'shared' and now - seen < rest then
    if text ~= info then
      redis.call('HSET', m, slot, string.format('%d %d %d %s %s', epoch, used, now, inc, info))
      redis.call('HINCRBY', m, '#v', 1)
    end
    return {tonumber(slot), epoch, used, inc, 1}
  end
  if ARGV[9] == slot then
    -- The member's own counter and Redis may each be ahead (a fence by others; a stale copy): go on from the farther one.
    local mine, mine_used = tonumber(ARGV[10]), tonumber(ARGV[11])
    if mine_used > used then epoch, used = mine, mine_used end
  end
  if used + jump <= most then
    return write(slot, (epoch + jump) % 65536, used + jump, incarnation)
  end
  -- This slot's epochs are used up: it rests under no name until nothing of it can be believed.
  redis.call('HSET', m, slot, string.format('%d %d %d - {}', epoch, used, now))
elseif ARGV[9] ~= '' and not redis.call('HGET', m, ARGV[9]) and tonumber(ARGV[11]) + jump <= most then
  -- Redis lost this member (a flush, a stale copy) and gave its slot to nobody: keep it, with the next epoch.
  return write(ARGV[9], (tonumber(ARGV[10]) + jump) % 65536, tonumber(ARGV[11]) + jump, incarnation)
end
for i = 13, #ARGV - 1, 2 do
  local there = redis.call('HGET', m, ARGV[i])
  local free = not there
  if there then
    local _, _, seen, inc, text = parse(there)
    if seen and now - seen > rest then free = true end
  end
  if free then return write(ARGV[i], tonumber(ARGV[i + 1]), 0, incarnation) end
end
return {0, 0, 0, '', 0}
""",
)

RENEW: Final = Script(
    "renew",
    """
-- KEYS[1]: members. ARGV: slot, incarnation, now (s), seen at least every (s). Returns {'ok', epoch, used} as recorded, {'lost'} (there is
-- no record) or {'taken', name} (it is another registration's).
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return {'lost'} end
local e, u, s, inc, text = string.match(record, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
if inc ~= ARGV[2] then return {'taken', string.match(text, '"name":"([^"]*)"') or ''} end
if tonumber(ARGV[3]) - tonumber(s) >= tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%s %s %s %s %s', e, u, ARGV[3], inc, text))
end
return {'ok', tonumber(e), tonumber(u)}
""",
)

FENCE: Final = Script(
    "fence",
    """
-- KEYS[1]: members. ARGV: slot, epoch and distance used that the caller knows (or '' and '' for any), epochs a slot at most.
-- Voids all that the member published. Returns {epoch, used} afterwards; {-1} where there is no record; {-2} where the slot's epochs are
-- used up (register anew). Several observers of one restart advance it once, since each says how far it knew it to be; a caller that knows
-- more than a stale copy of Redis goes on from what it knows.
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return {-1} end
local e, u, s, inc, text = string.match(record, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
local epoch, used = tonumber(e), tonumber(u)
if ARGV[2] ~= '' then
  if used > tonumber(ARGV[3]) then return {epoch, used} end
  epoch, used = tonumber(ARGV[2]), tonumber(ARGV[3])
end
if used + 1 > tonumber(ARGV[4]) then return {-2} end
epoch, used = (epoch + 1) % 65536, used + 1
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %d %s %s %s', epoch, used, s, inc, text))
redis.call('HINCRBY', KEYS[1], '#v', 1)
return {epoch, used}
""",
)

LEAVE: Final = Script(
    "leave",
    """
-- KEYS[1]: members. ARGV: slot, incarnation, now (s). The record stays as a tombstone, so that the slot rests; the name goes.
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return 0 end
local e, u, s, inc, text = string.match(record, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
if inc ~= ARGV[2] then return 0 end
local name = text and string.match(text, '"name":"([^"]*)"')
if name and redis.call('HGET', KEYS[1], '@' .. name) == ARGV[1] then redis.call('HDEL', KEYS[1], '@' .. name) end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s %s %s - {}', e, u, ARGV[3]))
redis.call('HINCRBY', KEYS[1], '#v', 1)
return 1
""",
)

SWEEP: Final = Script(
    "sweep",
    """
-- KEYS[1]: members. ARGV: now (s), rest (s), slots. Drops those whose rest is over. Returns how many.
local dropped = 0
for i = 3, #ARGV do
  local record = redis.call('HGET', KEYS[1], ARGV[i])
  if record then
    local e, u, s, inc, text = string.match(record, '^(%d+) (%d+) (%d+) (%S+) (.*)$')
    if s and tonumber(ARGV[1]) - tonumber(s) > tonumber(ARGV[2]) then
      local name = string.match(text, '"name":"([^"]*)"')
      if name and redis.call('HGET', KEYS[1], '@' .. name) == ARGV[i] then redis.call('HDEL', KEYS[1], '@' .. name) end
      redis.call('HDEL', KEYS[1], ARGV[i])
      dropped = dropped + 1
    end
  end
end
if dropped > 0 then redis.call('HINCRBY', KEYS[1], '#v', 1) end
return dropped
""",
)

ALL: Final = (APPLY, LOOKUP, REGISTER, RENEW, FENCE, LEAVE, SWEEP)
