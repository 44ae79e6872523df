-- Runs once for each generation request, before routing: checks and caps its deadline, and tells the router whether the answer is a stream.
-- What it reads in the body is a hint for time limits, never a decision about who may do what.

local GENERATION = {["/v1/chat/completions"] = true, ["/v1/completions"] = true, ["/chat"] = true}

-- Quotes and brackets looked at before the scan gives up (then it is JSON). 10 000 messages need about 100 000. A body made of brackets
-- only would otherwise hold Envoy's worker, and every other client with it, for too long (8 MiB at this limit: 0.05 s).
local MAX_STEPS = 400000

local QUOTE, BACKSLASH, OPEN_BRACE, OPEN_BRACKET = 34, 92, 123, 91

-- The index of the quote that ends the string begun at `start` (a quote), and the quotes looked at; nil if none ends it.
local function string_end(s, start)
  local at, steps = start, 0
  while true do
    at = s:find('"', at + 1, true)
    steps = steps + 1
    if not at then return nil, steps end
    local before = at - 1
    while s:byte(before) == BACKSLASH do before = before - 1 end
    if (at - before) % 2 == 1 then return at, steps end   -- an even number of backslashes: the quote is not escaped
  end
end

-- Whether "stream" with the value true is somewhere in `s`, at any depth or in a text; if it is there too often to look, yes.
local function may_want_stream(s)
  local at = 1
  for _ = 1, 16 do
    local _, last = s:find('"stream"', at, true)
    if not last then return false end
    if s:find("^%s*:%s*true", last + 1) then return true end
    at = last + 1
  end
  return true
end

-- Whether the JSON object `s` has the top-level member "stream": true. The last one counts, as it does in the pods' decoder.
-- Strings and nested values are skipped, so text that talks about "stream" is text. In doubt: false.
local function wants_stream(s)
  if not may_want_stream(s) then return false end
  local at, depth, steps, found = 1, 0, 0, false
  while steps < MAX_STEPS do
    at = s:find('["{}%[%]]', at)
    if not at then return false end
    steps = steps + 1
    local char = s:byte(at)
    if char == QUOTE then
      local last, looked = string_end(s, at)
      if not last then return false end
      steps = steps + looked
      if depth == 1 and last - at == 7 and s:sub(at + 1, last - 1) == "stream" and s:find("^%s*:", last + 1) then
        found = s:find("^%s*:%s*true%s*[,}]", last + 1) ~= nil
      end
      at = last
    elseif char == OPEN_BRACE or char == OPEN_BRACKET then
      if depth == 0 and (char == OPEN_BRACKET or s:find("%S") ~= at) then return false end
      depth = depth + 1
    else
      depth = depth - 1
      if depth == 0 then return found end
    end
    at = at + 1
  end
  return false
end

-- The pod ends a request at its deadline, with 504 or an error event; only one that does not is cut, so much later. Were Envoy to cut first,
-- each impatient client would count as a failure of the pod, and three of them in a row eject it.
local GRACE_MS = 500

-- The deadline in milliseconds; answers 400 to one that is no deadline. The route's own limit caps it.
local function deadline_of(handle, text)
  local wanted = #text <= 15 and text:match("^%d+$") and tonumber(text)
  if not wanted or wanted < 1 then
    handle:respond({[":status"] = "400"}, "x-request-deadline-ms must be a whole number of milliseconds from 1, got '" .. text:sub(1, 40) .. "'.")
  end
  return math.min(wanted, handle:metadata():get("max_deadline_ms"))
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") ~= "POST" or not GENERATION[(headers:get(":path") or ""):match("^[^?#]*")] then return end
  local text, deadline, arrived = headers:get("x-request-deadline-ms")
  if text then deadline, arrived = deadline_of(handle, text), handle:timestamp() end
  local body = handle:body()   -- waits for the upload; over the limit Envoy answers 413
  local is_stream = body and wants_stream(body:getBytes(0, body:length()))
  if not (is_stream or deadline) then return end
  headers = handle:headers()   -- those of before the wait may not be used after it
  if is_stream then headers:replace("x-convoy-stream", "1") end
  if deadline then
    headers:replace("x-request-deadline-ms", ("%d"):format(deadline))
    headers:replace("x-convoy-deadline", ("%d"):format(arrived + deadline))   -- for a second attempt, which has less
    headers:replace("x-envoy-upstream-rq-timeout-ms", ("%d"):format(deadline + GRACE_MS))
  end
end
