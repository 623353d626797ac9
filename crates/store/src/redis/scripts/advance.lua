-- Notes how far a sink was delivered to, and what was given up.
--
-- KEYS  sink, its dead letters, their ids
-- ARGV  owner, position expected or '', position now, time or '', then for each dead letter its
--       operation and its parcel
-- Gives 1, or 0 where somebody else has the sink, or it is elsewhere.

local held = redis.call('HMGET', KEYS[1], 'o', 'u', 'p')
local has = held[1] == ARGV[1] and clock(ARGV[4]) < tonumber(held[2])
if not has or held[3] ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'p', ARGV[3])
for at = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  redis.call('ZADD', KEYS[3], 0, ARGV[at])
end
return 1
