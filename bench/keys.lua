-- wrk: POST requests with new keys, one and the same key, some keys again and again, or no key.
-- ADDRESSES="HOST:PORT ..." [CALLERS=N] wrk ... -s keys.lua URL -- MODE PREFIX
local body = '{"model":"bench","input":"one request, about as long as a short prompt to a paid API"}'
local head, tail
local sent = 0
local mode

-- How many callers send new keys in turn, each with a credential of its own; 0 for one without.
local callers = tonumber(os.getenv("CALLERS") or "0")

-- How many keys each thread uses again and again.
local some = 2000

-- Where the threads send to, in turn. Not an argument: those are not known yet when a thread is set up.
local addresses = {}
for host, port in (os.getenv("ADDRESSES") or ""):gmatch("(%S+):(%d+)") do
  addresses[#addresses + 1] = { host, port }
end

-- Each thread has its own Lua: its number keeps their keys apart.
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
  if #addresses > 0 then
    local address = addresses[(threads - 1) % #addresses + 1]
    thread.addr = wrk.lookup(address[1], address[2])[1]
  end
end

function init(args)
  mode = args[1]
  local prefix = args[2] or "key"
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n" ..
    "Content-Length: " .. #body .. "\r\n"
  tail = "\r\n\r\n" .. body
  if mode == "none" then
    head = head .. "\r\n" .. body
  elseif mode == "one" then
    head = head .. "Idempotency-Key: " .. prefix .. tail
  else
    head = head .. "Idempotency-Key: " .. prefix .. "-" .. number .. "-"
  end
end

function request()
  if mode == "some" then
    sent = sent % some + 1
  elseif mode == "new" then
    sent = sent + 1
  else
    return head
  end
  if callers > 0 then
    return head .. sent .. "\r\nAuthorization: Bearer caller-" .. sent % callers .. tail
  end
  return head .. sent .. tail
end

-- One line for the harness; latencies are in microseconds.
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d\n",
    summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.timeout, errors.status,
    latency:percentile(50), latency:percentile(99)))
end
