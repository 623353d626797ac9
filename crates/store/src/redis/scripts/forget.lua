-- Forgets dead letters.
--
-- KEYS  dead letters, their ids
-- ARGV  ids
-- Gives how many there were.

local forgotten = 0
for _, id in ipairs(ARGV) do
  forgotten = forgotten + redis.call('HDEL', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
end
return forgotten
