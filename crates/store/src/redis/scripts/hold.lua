-- Takes the right to deliver to a sink.
--
-- KEYS  sink, ledger
-- ARGV  owner, milliseconds, 1 where a new sink begins with what is booked from now on, time or ''
-- Gives {1, position or ''}; {0, ''} while another owner has it.

local now = clock(ARGV[4])
local held = redis.call('HMGET', KEYS[1], 'o', 'u', 'p')
if held[1] and held[1] ~= ARGV[1] and now < tonumber(held[2]) then
  return {0, ''}
end
local position = held[3]
if not position then
  position = ''
  if ARGV[3] == '1' then
    local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
    position = last and last[1] or ''
  end
end
local until_when = string.format('%.0f', now + ARGV[2])
redis.call('HSET', KEYS[1], 'o', ARGV[1], 'u', until_when, 'p', position)
return {1, position}
