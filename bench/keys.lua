-- wrk: POST requests with new keys, one and the same key, or no key.
-- wrk ... -s keys.lua URL -- MODE PREFIX
local body = '{"model":"bench","input":"one request, about as long as a short prompt to a paid API"}'
local head, tail
local sent = 0
local mode

-- Each thread has its own Lua: its number keeps their keys apart.
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
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
  if mode ~= "new" then
    return head
  end
  sent = sent + 1
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
