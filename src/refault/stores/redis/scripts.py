"""What a server does at one stroke; each script touches the keys of one slot.

They answer 0 or what was asked for, or one of these: GONE: the array, or a part of its record,
is no longer there.  OVERTAKEN: somebody else has written since, or may write now.
"""

from __future__ import annotations

__all__ = ["CREATE", "GONE", "LOAD", "NOTE", "OVERTAKEN", "PUT", "TAKE"]

GONE = -1
OVERTAKEN = -2

PUT = """
local head = redis.call('GETRANGE', KEYS[1], 0, 27)
if #head == 28 and string.sub(head, 1, 12) == string.sub(ARGV[1], 1, 12) then
  local held = struct.unpack('>I8', string.sub(head, 21, 28))
  if held > struct.unpack('>I8', string.sub(ARGV[1], 21, 28)) then return -2 end
end
redis.call('SET', KEYS[1], ARGV[1])
return 0
"""
"""KEYS: block.  ARGV: its value.  A write that was overtaken, by another one or by its own
repetition, does not undo what came after it."""

CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return -2 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 0
"""
"""KEYS: meta.  ARGV: its fields and values."""

TAKE = """
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'term')
if meta[1] ~= ARGV[1] then return -1 end
if ARGV[2] == '' then return redis.call('HINCRBY', KEYS[1], 'term', 1) end
if tonumber(meta[2]) > tonumber(ARGV[2]) then return -2 end
redis.call('HSET', KEYS[1], 'term', ARGV[2])
return tonumber(ARGV[2])
"""
"""KEYS: meta.  ARGV: epoch, term; no term: the next one.  From now on only the writer of that
term writes."""

LOAD = """
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'term', ARGV[3])
if meta[1] ~= ARGV[1] then return -1 end
if ARGV[2] ~= '' and meta[2] ~= ARGV[2] then return -2 end
if meta[3] then
  local page = redis.call('GET', KEYS[2])
  if not page or #page ~= tonumber(ARGV[4]) then return -1 end
  return page
end
if ARGV[2] ~= '' then
  redis.call('SETRANGE', KEYS[2], ARGV[4] - 1, '\\0')
  redis.call('HSET', KEYS[1], ARGV[3], '1')
end
return ''
"""
"""KEYS: meta, page.  ARGV: epoch, term, the field that says whether there is such a page, its
length.  A writer makes the page if there is none."""

NOTE = """
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'term')
if meta[1] ~= ARGV[1] then return -1 end
if meta[2] ~= ARGV[2] then return -2 end
if #ARGV > 2 then
  local old = redis.call('GETRANGE', KEYS[2], ARGV[3], ARGV[3] + #ARGV[4] - 1)
  if #old ~= #ARGV[4] then return -1 end
  local new = {}
  for i = 1, #old, 8 do
    local one, held = string.sub(ARGV[4], i, i + 7), string.sub(old, i, i + 7)
    if struct.unpack('>I8', held) > struct.unpack('>I8', one) then one = held end
    new[#new + 1] = one
  end
  redis.call('SETRANGE', KEYS[2], ARGV[3], table.concat(new))
end
return 0
"""
"""KEYS: meta, page.  ARGV: epoch, term, where in the page, generations; none: only see whether
the term is still in force.  No generation becomes smaller."""
