-- The compare-and-set of a record, and all that goes with it.
--
-- KEYS  record, ids, leases, ends, mark of the store, inbox, others
-- ARGV  fence expected or '', states it may come from, new head, body, last chunk or '',
--       note of the attempt or '', until when, chunks, its member, milliseconds kept beyond
--       the end, time or '', entry for the books or '', milliseconds up to which the inbox's ids may
--       be behind its mark, latest time or ''
-- Gives {token, 1, attempts}; {token, 2, attempts} for an operation that is new; {token, 0, 0} when it
-- lost; {token, -1, 0} for a damaged record; {token, -2, 0} when it came too late; and
-- {token, -3, held head} where the drawing has no such arrow (I8); {token, -4, mark} for a claim where
-- the store takes none any more. The token is the new head's.

local key, ids, leases, ends, others = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[7]
local new, member = ARGV[3], ARGV[9]
local token = sub(new, 51, 58)

local held, damaged, made, attempts = read(key, 'm', 'n')
if damaged then
  return {token, -1, 0}
end
if held == new then
  return {token, 1, tonumber(attempts or 1)}
end
local now = clock(ARGV[11])
if ARGV[14] ~= '' and now > tonumber(ARGV[14]) then
  return {token, -2, 0}
end

local from = '0'
if held and not expired(held, now) then
  from = sub(held, 2, 2)
end
local fence = ''
if from ~= '0' then
  fence = sub(held, 3, 26)
end
if fence ~= ARGV[1] then
  return {token, 0, 0}
end
local to = sub(new, 2, 2)
local claims = to == '1' and from ~= '1'
local claim = sub(new, 3, 10)
if not claims then
  claim = held and sub(held, 27, 34)
end
if not string.find(ARGV[2], from, 1, true) or sub(new, 27, 34) ~= claim then
  return {token, -3, from ~= '0' and held or ''}
end

if claims then
  local mark = redis.call('GET', KEYS[5])
  if mark and sub(mark, 1, 6) == 'moved ' then
    return {token, -4, mark}
  end
end

-- What expired makes room.
if held and from == '0' then
  local old = sub(held, 11, 26) .. sub(member, 17)
  redis.call('ZREM', ids, old)
  redis.call('ZREM', ends, old)
  if sub(held, 2, 2) == '4' then
    redis.call('ZREM', others, old)
  end
  redis.call('UNLINK', key)
end

-- The indexes come before the record: an entry without a record is swept, a record without an entry
-- would never be overdue.
if to == '1' then
  if from == '0' then
    redis.call('ZADD', ids, 0, member)
  elseif from == '4' then
    redis.call('ZREM', ends, member)
    redis.call('PERSIST', key)
  end
  redis.call('ZADD', leases, ARGV[7], member)
else
  if from == '1' then
    redis.call('ZREM', leases, member)
  end
  if to ~= '3' then
    redis.call('ZADD', ends, ARGV[7], member)
  end
end
if to == '3' or to == '4' then
  redis.call('ZADD', others, 0, member)
elseif from == '3' or from == '4' then
  redis.call('ZREM', others, member)
end

-- A new execution starts a new recording; a finished one has no chunk beyond its last.
if to == '2' or (claims and from ~= '0') then
  local first = 0
  if to == '2' then
    first = math.max(tonumber(ARGV[8]) - 1, 0)
  end
  made = tonumber(made or 0)
  for chunk = first, made - 1 do
    redis.call('HDEL', key, 'c' .. chunk)
  end
  if made > first then
    redis.call('HSET', key, 'm', first)
  end
  if ARGV[5] == '' then
    redis.call('HDEL', key, 'l')
  end
end

local fields = {'h', new, 'r', ARGV[4]}
if ARGV[5] ~= '' then
  fields[5], fields[6] = 'l', ARGV[5]
end
attempts = from ~= '0' and tonumber(attempts or 1) or 0
if ARGV[6] ~= '' then
  attempts = attempts + 1
  fields[#fields + 1] = 'a' .. attempts
  fields[#fields + 1] = ARGV[6]
  if attempts > 100 then
    redis.call('HDEL', key, 'a' .. attempts - 100)
  end
end
-- One attempt is what most have, and goes without saying.
if (from == '0' and attempts ~= 1) or (from ~= '0' and ARGV[6] ~= '') then
  fields[#fields + 1] = 'n'
  fields[#fields + 1] = attempts
end
redis.call('HSET', key, unpack(fields))
if ARGV[12] ~= '' then
  local inbox, floor = KEYS[6], tonumber(ARGV[13])
  local at = redis.call('XADD', inbox, '*', 'e', ARGV[12])
  -- After a failover the clock may be behind; what is behind the mark would never be booked.
  if tonumber(string.match(at, '^%d+')) <= floor then
    redis.call('XDEL', inbox, at)
    redis.call('XADD', inbox, string.format('%.0f-*', floor + 1), 'e', ARGV[12])
  end
end
if to == '2' or to == '4' then
  redis.call('PEXPIRE', key, ARGV[7] - now + ARGV[10])
end
if to ~= '1' then
  tell(key)
end
if from == '0' then
  return {token, 2, attempts}
end
return {token, 1, attempts}
