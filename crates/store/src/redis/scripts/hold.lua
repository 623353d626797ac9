-- Takes the right to deliver to a sink, or takes it for longer.
--
-- KEYS  sink, ledger
-- ARGV  owner, milliseconds, '1' where a new sink begins now, time or ''
-- Gives {1, position or ''}, or {0, ''} while another owner has it.

local now = clock(ARGV[4])
local held = redis.call('HMGET', KEYS[1], 'o', 'u', 'p')
if not held[3] then
  held[3] = ''
  if ARGV[3] == '1' then
    local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
    if last[1] then
      held[3] = last[1][1]
    end
  end
elseif held[1] ~= ARGV[1] and now < tonumber(held[2]) then
  return {0, ''}
end
redis.call('HSET', KEYS[1], 'o', ARGV[1], 'u', now + ARGV[2], 'p', held[3])
return {1, held[3]}
