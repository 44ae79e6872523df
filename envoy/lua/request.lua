-- Runs once for each request, before routing: settles the request id and tells the router whether the answer is a stream.
-- Both are hints for people and for time limits, never a decision about who may do what.

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

-- Whether the JSON object `s` has the top-level member "stream": true. The last one counts, as it does in the pods' decoder.
-- Strings and nested values are skipped, so text that talks about "stream" is text. In doubt: false.
local function wants_stream(s)
  if not s:find('"stream"', 1, true) then return false end
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

-- The caller's id is kept if it is short and printable; otherwise the one that Envoy made for this request takes its place.
local function settle_request_id(headers)
  local id, made = headers:get("x-request-id"), headers:get("x-convoy-new-id")
  if made and (not id or #id == 0 or #id > 128 or id:find("[^\33-\126]")) then headers:replace("x-request-id", made) end
  headers:remove("x-convoy-new-id")
end

function envoy_on_request(handle)
  local headers = handle:headers()
  settle_request_id(headers)
  if headers:get(":method") ~= "POST" or not GENERATION[(headers:get(":path") or ""):match("^[^?#]*")] then return end
  local body = handle:body()   -- waits for the upload; over the limit Envoy answers 413
  if body and wants_stream(body:getBytes(0, body:length())) then
    handle:headers():replace("x-convoy-stream", "1")   -- `headers` of before the wait may not be used after it
  end
end
