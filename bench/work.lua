-- wrk: workers that begin operations with new keys and complete them, over the operations API.
-- TOKEN=... wrk ... -s work.lua URL -- PREFIX
local prefix, begin_head, complete_tail, result
local begun = 0
-- What was granted and is to be completed: an id, a claim, an id, ...
local granted, first, last = {}, 1, 0

-- Each thread has its own Lua: its number keeps their keys apart.
local threads = {}
function setup(thread)
  threads[#threads + 1] = thread
  thread:set("number", #threads)
end

function init(args)
  prefix = args[1]
  local head = "Host: bench\r\nContent-Type: application/json\r\nAuthorization: Bearer " ..
    os.getenv("TOKEN") .. "\r\nContent-Length: "
  begin_head = "POST /v1/work HTTP/1.1\r\n" .. head
  complete_tail = " HTTP/1.1\r\n" .. head
  result = ',"result":{"id":"bench","object":"report","text":"' .. string.rep("0123456789abcdef", 8) .. '"}}'
end

function request()
  if first > last then
    begun = begun + 1
    local body = '{"key":"' .. prefix .. "-" .. number .. "-" .. begun ..
      '","input":{"model":"bench","input":"one request, about as long as a short prompt"}}'
    return begin_head .. #body .. "\r\n\r\n" .. body
  end
  local id, claim = granted[first], granted[first + 1]
  granted[first], granted[first + 1] = nil, nil
  first = first + 2
  local body = '{"claim":"' .. claim .. '"' .. result
  return "POST /v1/work/" .. id .. "/complete" .. complete_tail .. #body .. "\r\n\r\n" .. body
end

-- A global, which the harness's thread may ask for.
completed = 0
function response(status, headers, body)
  local id, claim = body:match('^{"decision":"execute","operation":"([^"]+)".-"claim":"(%x+)"')
  if id then
    granted[last + 1], granted[last + 2] = id, claim
    last = last + 2
  elseif status == 200 then
    completed = completed + 1
  end
end

-- One line for the harness: pairs in the place of requests; latencies are those of one request.
function done(summary, latency)
  local pairs_done = 0
  for _, thread in ipairs(threads) do
    pairs_done = pairs_done + thread:get("completed")
  end
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d\n",
    pairs_done, summary.duration,
    errors.connect + errors.read + errors.write + errors.timeout, errors.status,
    latency:percentile(50), latency:percentile(99)))
end
