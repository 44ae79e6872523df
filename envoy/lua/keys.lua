-- Who is calling: runs before the limits and before a body is read. The edge puts a line `CONVOY_CLIENTS = ...` in front of this file, a
-- version of its own for each change; as it lies (and where there is no clients file) everybody is `local`, with the role `ops`.

local bit = require("bit")
local band, bnot, bxor, ror, rshift, tobit = bit.band, bit.bnot, bit.bxor, bit.ror, bit.rshift, bit.tobit

local OPEN = {["/health"] = true, ["/healthz"] = true, ["/livez"] = true, ["/readyz"] = true, ["/docs"] = true, ["/openapi.json"] = true}

-- SHA-256 (FIPS 180-4). LuaJIT has 32-bit arithmetic and no hash; 20 microseconds for a key of ours.
local K = {}
local START = {}
do
  local function fraction(x) return tobit(math.floor((x - math.floor(x)) * 4294967296)) end
  local found, n = 0, 2
  while found < 64 do
    local is_prime = true
    for d = 2, math.floor(math.sqrt(n)) do
      if n % d == 0 then is_prime = false break end
    end
    if is_prime then
      found = found + 1
      K[found] = fraction(n ^ (1 / 3))
      if found <= 8 then START[found] = fraction(math.sqrt(n)) end
    end
    n = n + 1
  end
end

local W = {}

local function compress(h, block, at)
  for i = 1, 16 do
    local a, b, c, d = block:byte(at, at + 3)
    W[i] = bit.bor(bit.lshift(a, 24), bit.lshift(b, 16), bit.lshift(c, 8), d)
    at = at + 4
  end
  for i = 17, 64 do
    local x, y = W[i - 15], W[i - 2]
    local s0 = bxor(ror(x, 7), ror(x, 18), rshift(x, 3))
    local s1 = bxor(ror(y, 17), ror(y, 19), rshift(y, 10))
    W[i] = tobit(W[i - 16] + s0 + W[i - 7] + s1)
  end
  local a, b, c, d, e, f, g, i = h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]
  for t = 1, 64 do
    local s1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
    local t1 = tobit(i + s1 + bxor(band(e, f), band(bnot(e), g)) + K[t] + W[t])
    local s0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
    local t2 = tobit(s0 + bxor(band(a, b), band(a, c), band(b, c)))
    i, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
  end
  for n, value in ipairs({a, b, c, d, e, f, g, i}) do h[n] = tobit(h[n] + value) end
end

-- Hexadecimal digest of a text shorter than 512 MiB.
local function sha256(text)
  local bits = #text * 8
  local tail = string.char(band(rshift(bits, 24), 255), band(rshift(bits, 16), 255), band(rshift(bits, 8), 255), band(bits, 255))
  local padded = text .. "\128" .. string.rep("\0", (55 - #text) % 64) .. "\0\0\0\0" .. tail
  local h = {unpack(START)}
  for at = 1, #padded, 64 do compress(h, padded, at) end
  for n = 1, 8 do h[n] = bit.tohex(h[n]) end
  return table.concat(h)
end

-- What a pod is told of the client, by the field of it; early_header_mutation has removed what the caller said of itself.
local HEADERS = {
  id = "x-client-id", role = "x-client-role", class = "x-client-class", max_concurrent = "x-client-max-concurrent",
  tokens_per_minute = "x-client-tokens-per-minute", max_priority = "x-client-max-priority", models = "x-client-models",
}

-- The clients by the hash of their keys, from one line a key, its fields separated by tabs; an empty field is not set.
local FIELDS = {"id", "role", "class", "rate", "burst", "max_concurrent", "tokens_per_minute", "max_priority", "models", "expires"}

local function read_clients(lines)
  local clients, classes = {}, {}
  for hash, rest in lines:gmatch("(%x+)\t([^\n]*)\n") do
    local client, n = {told = {}}, 0   -- `told`: names and values of headers, by turns
    for value in (rest .. "\t"):gmatch("([^\t]*)\t") do
      n = n + 1
      local field = FIELDS[n]
      if value ~= "" then
        client[field] = value
        local told, name = client.told, HEADERS[field]
        if name then told[#told + 1], told[#told + 2] = name, value end
      end
    end
    classes[client.class] = {rate = client.rate, burst = client.burst}
    clients[hash] = client
  end
  return clients, classes
end

-- `CLASSES`: the rate and the burst of each class that a client has.
local CLIENTS, CLASSES
if CONVOY_CLIENTS then CLIENTS, CLASSES = read_clients(CONVOY_CLIENTS) end
CONVOY_CLIENTS = nil   -- 5000 clients are 600 kB of text

-- Clients by keys that were seen, so that a key is hashed once and not for each request (16 of 43 microseconds). Only good keys are in it,
-- and it goes with this version of the table. Keys lie in Envoy's memory anyway, in the requests that carry them; no dump shows them.
local SEEN = {}

local num_made = 0

-- Another id than any other request's, in the shape of those that Envoy makes.
local function make_id(handle, id)
  num_made = num_made + 1
  local hash = sha256(("%s %s %d %s"):format(id:sub(1, 64), handle:timestamp(), num_made, tostring(handle)))
  return ("%s-%s-4%s-8%s-%s"):format(hash:sub(1, 8), hash:sub(9, 12), hash:sub(13, 15), hash:sub(16, 18), hash:sub(19, 30))
end

-- The caller's id is kept if it is short and printable; otherwise another takes its place. Where none came, Envoy has made one.
local function settle_request_id(handle, headers)
  local id = headers:get("x-request-id") or ""
  if #id == 0 or #id > 128 or id:find("[^\33-\126]") then headers:replace("x-request-id", make_id(handle, id)) end
end

-- Answers at once; what stands after it is not run.
local function refuse(handle, reason)
  handle:respond({[":status"] = "401", ["www-authenticate"] = "Bearer"}, reason)
end

-- The key that came, without its scheme; nil and a reason if there is none.
local function key_of(headers)
  local authorization, key = headers:get("authorization"), headers:get("x-api-key")
  if authorization then
    local bearer = authorization:match("^[Bb][Ee][Aa][Rr][Ee][Rr] +(%S+)$")
    if bearer then return bearer end
    return nil, "The Authorization header must be: Bearer KEY."
  end
  if key and key ~= "" then return key end
  return nil, "No API key. Send it as: Authorization: Bearer KEY, or as x-api-key."
end

local function identify(handle, headers)
  local key, problem = key_of(headers)
  if not key then return refuse(handle, problem) end
  local client = SEEN[key] or CLIENTS[sha256(key)]
  if not client then return refuse(handle, "This API key is not known.") end
  SEEN[key] = client
  if client.expires and handle:timestamp() >= tonumber(client.expires) * 1000 then return refuse(handle, "This API key has expired.") end
  local told = client.told
  for n = 1, #told, 2 do headers:add(told[n], told[n + 1]) end
  -- The route was chosen before the role was known, and so as for somebody without one: the safe side. keys.yaml says why only here.
  if client.role == "ops" then handle:clearRouteCache() end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  settle_request_id(handle, headers)
  if not CLIENTS then
    headers:add("x-client-id", "local")
    headers:add("x-client-role", "ops")
    handle:clearRouteCache()
  else
    local path = (headers:get(":path") or ""):match("^[^?#]*")
    if not OPEN[path] and path:sub(1, 6) ~= "/docs/" then
      identify(handle, headers)
    end
  end
  headers:remove("authorization")   -- no pod shall see a key
  headers:remove("x-api-key")
end

-- "0.25s", "59s", "6m0s": OpenAI's way to say how long.
local function duration(seconds)
  if seconds < 60 then return (("%.2f"):format(seconds):gsub("%.?0+$", "")) .. "s" end
  local whole = math.ceil(seconds)
  return ("%dm%ds"):format(math.floor(whole / 60), whole % 60)
end

-- The limiter below tells of its bucket; OpenAI's headers tell the rate, what is left, and the time until it is full again.
-- routes.yaml copies the class into the answer: a request's headers are not seen here, and dynamic metadata costs five times as much.
function envoy_on_response(handle)
  local headers = handle:headers()
  local class, left = headers:get("x-convoy-class"), headers:get("x-ratelimit-remaining")
  if class then headers:remove("x-convoy-class") end
  if not left then return end
  headers:remove("x-ratelimit-limit")
  headers:remove("x-ratelimit-remaining")
  headers:remove("x-ratelimit-reset")
  local limits = class and CLASSES and CLASSES[class]
  if not limits then return end
  headers:replace("x-ratelimit-limit-requests", limits.rate)
  headers:replace("x-ratelimit-remaining-requests", left)
  headers:replace("x-ratelimit-reset-requests", duration((limits.burst - left) * 60 / limits.rate))
end
