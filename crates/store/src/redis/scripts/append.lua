-- Adds a chunk to the recording of a claim that stands (I9).
--
-- KEYS  record
-- ARGV  id and claim, number of the chunk, chunk
-- Gives {id and claim, number of the chunk, 1}, or 0 in the last place where the claim does not stand
-- any more, or -1 there for a damaged record.

local key = KEYS[1]
local held, damaged, made = read(key, 'm')
if damaged then
  return {ARGV[1], ARGV[2], -1}
end
if not held or sub(held, 11, 34) ~= ARGV[1] then
  return {ARGV[1], ARGV[2], 0}
end
local state = sub(held, 2, 2)
if state ~= '1' and state ~= '3' then
  return {ARGV[1], ARGV[2], 0}
end
redis.call('HSET', key, 'c' .. ARGV[2], ARGV[3], 'm', math.max(made or 0, ARGV[2] + 1))
return {ARGV[1], ARGV[2], 1}
