-- Removes a record and its recording under its fence (I9).
--
-- KEYS  record, ids, leases, ends, others
-- ARGV  fence, address
-- Gives {fence, 1}; {fence, 0} where another record is held, or none; {fence, -1} for a damaged one.

local held, damaged = read(KEYS[1])
if damaged then
  return {ARGV[1], -1}
end
if not held or sub(held, 3, 26) ~= ARGV[1] then
  return {ARGV[1], 0}
end
local member = sub(held, 11, 26) .. ARGV[2] .. sub(held, 47, 50)
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], member)
redis.call('ZREM', KEYS[3], member)
redis.call('ZREM', KEYS[4], member)
redis.call('ZREM', KEYS[5], member)
return {ARGV[1], 1}
