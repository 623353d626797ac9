-- Notes how far a sink was delivered to, and what was given up on the way.
--
-- KEYS  sink, dead letters, their ids
-- ARGV  owner, position expected or '', new position, time or ''; for each dead letter: id, letter
-- Gives 1, or 0 where the owner does not hold the sink, or it is elsewhere.

local held = redis.call('HMGET', KEYS[1], 'o', 'u', 'p')
if held[1] ~= ARGV[1] or held[3] ~= ARGV[2] or clock(ARGV[4]) >= tonumber(held[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'p', ARGV[3])
for at = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  redis.call('ZADD', KEYS[3], 0, ARGV[at])
end
return 1
