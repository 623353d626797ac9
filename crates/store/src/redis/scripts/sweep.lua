-- Drops records that have expired, and entries of the indexes whose record is gone.
--
-- KEYS  ids, leases, ends, others, then the records
-- ARGV  time or '', then the member of each
-- Gives how many records it dropped, and their bytes.

local ids, leases, ends, others = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now = clock(ARGV[1])
local dropped, bytes = 0, 0
for at = 5, #KEYS do
  local key, member = KEYS[at], ARGV[at - 3]
  local held, damaged = read(key)
  local same = held and sub(held, 11, 26) == sub(member, 1, 16)
  if same and expired(held, now) then
    bytes = bytes + redis.call('HSTRLEN', key, 'r') + redis.call('HSTRLEN', key, 'l')
    for chunk = 0, tonumber(redis.call('HGET', key, 'm') or 0) - 1 do
      bytes = bytes + redis.call('HSTRLEN', key, 'c' .. chunk)
    end
    redis.call('UNLINK', key)
    dropped = dropped + 1
    same = false
  end
  -- What is damaged stays, and is not looked at again.
  if not same then
    if not damaged then
      redis.call('ZREM', ids, member)
      redis.call('ZREM', leases, member)
      -- What was completed is not among them.
      if not held or sub(held, 2, 2) ~= '2' then
        redis.call('ZREM', others, member)
      end
    end
    redis.call('ZREM', ends, member)
  end
end
return {dropped, bytes}
