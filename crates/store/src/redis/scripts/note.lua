-- Notes one more attempt of an operation.
--
-- KEYS  record
-- ARGV  id, note
-- Gives the attempt's number; 0 where another operation is held, or none; -1 for a damaged record.

local key = KEYS[1]
local held, damaged, attempts = read(key, 'n')
if damaged then
  return -1
end
if not held or sub(held, 11, 26) ~= ARGV[1] then
  return 0
end
attempts = (attempts or 1) + 1
redis.call('HSET', key, 'n', attempts, 'a' .. attempts, ARGV[2])
if attempts > 100 then
  redis.call('HDEL', key, 'a' .. attempts - 100)
end
return attempts
