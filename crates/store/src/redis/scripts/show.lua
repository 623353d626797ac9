-- Shows more of a recording to those who follow it on other gateways.
--
-- KEYS  record, shown, frames
-- ARGV  id and claim, head or '', where in the body the bytes begin, bytes or '', bytes of the body in
--       chunks, 1 at the end, milliseconds to keep it
-- Gives 1; 0 where the recording is nobody's any more (I9).

local key, shown, frames = KEYS[1], KEYS[2], KEYS[3]
local held = read(key)
if not held or sub(held, 11, 34) ~= ARGV[1] then
  return 0
end
if redis.call('HGET', shown, 'g') ~= ARGV[1] then
  redis.call('UNLINK', shown, frames)
  redis.call('HSET', shown, 'g', ARGV[1], 'c', 0)
end
if ARGV[2] ~= '' then
  redis.call('HSET', shown, 'h', ARGV[2])
end
if ARGV[4] ~= '' then
  -- One that is there already is refused, and stays.
  redis.pcall('XADD', frames, ARGV[3] + 1 .. '-1', 'b', ARGV[4])
end
if tonumber(ARGV[5]) > tonumber(redis.call('HGET', shown, 'c')) then
  redis.call('HSET', shown, 'c', ARGV[5])
  redis.call('XTRIM', frames, 'MINID', ARGV[5] + 1)
end
if ARGV[6] == '1' then
  redis.call('HSET', shown, 'e', 1)
end
redis.call('PEXPIRE', shown, ARGV[7])
redis.call('PEXPIRE', frames, ARGV[7])
tell(key)
return 1
