#!lua FLAGS
-- What stands in front of every script. The head of a record is the field `h`; its bytes are drawn
-- in head.rs. A head that is there and does not check is damage, and damage is never absence (I13).

local sub = string.sub

-- The head; whether the record is damaged; and the fields that are asked for besides.
local function read(key, ...)
  local fields = redis.call('HMGET', key, 'h', ...)
  local head = fields[1]
  if not head then
    return nil, redis.call('EXISTS', key) == 1, unpack(fields, 2)
  end
  local good = #head == 66 and string.byte(head) == 1
    and sub(redis.sha1hex(sub(head, 1, 58)), 1, 8) == sub(head, 59)
  if good then
    return head, false, unpack(fields, 2)
  end
  return nil, true
end

-- The server's clock decides, unless a test gives the time.
local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function expired(head, now)
  local state = sub(head, 2, 2)
  return (state == '2' or state == '4') and now >= struct.unpack('>I8', head, 35)
end

-- Tells those who listen to a key's channel that there is something new. A server that does not let the user publish must not
-- stop the script half-way: they ask now and then.
local function tell(key)
  redis.pcall('SPUBLISH', key, '')
end

