-- Adds to the sums, and moves entries of one shard's inbox to the ledger: all of it once.
--
-- KEYS  folded marks, ledger, periods of hours, periods of days, then hashes of sums
-- ARGV  shard or '', mark expected or '', mark to set, how many entries, then for each its id and its
--       parcel; then for each hash of sums its grain ('h' or 'd'), its period, how many fields, and for
--       each its name and how much more
-- Gives 1, or 0 where the mark is another one: somebody else was faster, and nothing is done.

local at = 1
if ARGV[1] ~= '' then
  local mark = redis.call('HGET', KEYS[1], ARGV[1]) or ''
  if mark ~= ARGV[2] then
    return 0
  end
end
at = 5
for _ = 1, tonumber(ARGV[4]) do
  redis.call('XADD', KEYS[2], '*', 'i', ARGV[at], 'e', ARGV[at + 1])
  at = at + 2
end
for key = 5, #KEYS do
  local grain, period, fields = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  at = at + 3
  redis.call('ZADD', grain == 'h' and KEYS[3] or KEYS[4], period, period)
  for _ = 1, fields do
    redis.call('HINCRBY', KEYS[key], ARGV[at], ARGV[at + 1])
    at = at + 2
  end
end
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
return 1
