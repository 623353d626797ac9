-- Marks a store, where it is marked as expected.
--
-- KEYS  mark
-- ARGV  mark expected or '', mark to set or ''
-- Gives 1, or 0 where it is marked otherwise.

local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
return 1
