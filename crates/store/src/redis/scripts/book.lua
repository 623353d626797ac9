-- Brings entries into the books, and adds to the sums, where nobody was faster: all or nothing.
--
-- KEYS  folded, ledger, then for each period: the periods of its grain, its sums
-- ARGV  count of inboxes; for each: shard, mark expected or '', new mark
--       count of entries; for each: its shard, the entry
--       for each period: its beginning, count of fields; for each: field, how much more
-- Gives 1, or 0 where an inbox is marked otherwise.

local at = 1
local function take()
  at = at + 1
  return ARGV[at - 1]
end

local marks = {}
for inbox = 1, tonumber(take()) do
  local shard, expected, new = take(), take(), take()
  if (redis.call('HGET', KEYS[1], shard) or '') ~= expected then
    return 0
  end
  marks[inbox] = {shard, new}
end
for _, mark in ipairs(marks) do
  redis.call('HSET', KEYS[1], mark[1], mark[2])
end
for _ = 1, tonumber(take()) do
  local shard, entry = take(), take()
  redis.call('XADD', KEYS[2], '*', shard, entry)
end
for key = 3, #KEYS, 2 do
  local period = take()
  redis.call('ZADD', KEYS[key], period, period)
  for _ = 1, tonumber(take()) do
    local field, more = take(), take()
    -- What does not fit is refused, and the sum stays.
    redis.pcall('HINCRBY', KEYS[key + 1], field, more)
  end
end
return 1
