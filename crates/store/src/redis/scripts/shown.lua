-- What is shown of a recording, from where somebody has seen it.
--
-- KEYS  shown, frames
-- ARGV  id and claim, bytes of the body seen
-- Gives {head or '', bytes in chunks, '1' at the end or '', start, bytes, start, bytes ...}; nothing
-- where that recording is not shown.

local shown, frames = KEYS[1], KEYS[2]
local fields = redis.call('HMGET', shown, 'g', 'h', 'c', 'e')
if fields[1] ~= ARGV[1] then
  return {}
end
local from = math.max(ARGV[2], tonumber(fields[3]))
local answer = {fields[2] or '', tonumber(fields[3]), fields[4] or ''}
-- The frame that begins there, or before.
local first = redis.call('XREVRANGE', frames, from + 1 .. '-1', '-', 'COUNT', 1)[1]
for _, frame in ipairs(redis.call('XRANGE', frames, first and first[1] or '-', '+')) do
  answer[#answer + 1] = string.match(frame[1], '^%d+') - 1
  answer[#answer + 1] = frame[2][2]
end
return answer
