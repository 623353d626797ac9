-- Puts a head in the place of one that says completed, where the recording cannot be read (I13).
--
-- KEYS  record, ends, others
-- ARGV  head expected, new head, its member

if redis.call('HGET', KEYS[1], 'h') ~= ARGV[1] then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[3])
redis.call('ZADD', KEYS[3], 0, ARGV[3])
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'h', ARGV[2])
return 1
