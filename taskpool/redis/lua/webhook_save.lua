-- Stores or removes an endpoint, and updates the set of events that any endpoint wants.
--
-- ARGV[1]  id
-- ARGV[2]  the endpoint as JSON; '' = remove it with its deliveries
-- ARGV[3]  the revision that it must have now; '0' = it must not exist yet
-- ARGV[4]  at most so many endpoints of its project, or built-in ones if it is one; '' = any number
-- ARGV[5]  entry of the audit; '' = none
-- ARGV[6+] every event there is
-- Returns  'ok' (also when sent again) | 'gone' | 'changed' (it has another revision) | 'full'

local id, document, revision = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = redis.call('HGET', KEY.webhooks, id)

-- What stands there; nil if it can't be read.
local function read(text)
  local is_json, endpoint = pcall(cjson.decode, text)
  return is_json and type(endpoint) == 'table' and endpoint or nil
end

-- Whose endpoints are counted together.
local function group_of(endpoint_id, project)
  return string.find(endpoint_id, '^callback') and 'callbacks' or type(project) == 'string' and 'project ' .. project or ''
end

local endpoints = {}
local flat = redis.call('HGETALL', KEY.webhooks)
for at = 1, #flat, 2 do endpoints[flat[at]] = read(flat[at + 1]) end

if now and now == document then return 'ok' end
if not now and revision > 0 then return 'gone' end
if now and (not endpoints[id] or endpoints[id].revision ~= revision) then return 'changed' end
local most, new, count = tonumber(ARGV[4]), read(document), 0
if not now and most then
  local group = group_of(id, new.project)
  for other, endpoint in pairs(endpoints) do
    if group_of(other, endpoint.project) == group then count = count + 1 end
  end
  if count >= most then return 'full' end
end
endpoints[id] = new

if document == '' then
  redis.call('HDEL', KEY.webhooks, id)
  for _, list in ipairs({KEY.deliveries, KEY.deliveries_dead, KEY.webhooks_waiting, KEY.webhooks_sending}) do
    for _, delivery in ipairs(redis.call('ZRANGE', list .. id, 0, -1)) do redis.call('DEL', KEY.delivery .. delivery) end
    redis.call('DEL', list .. id)
  end
  redis.call('DEL', KEY.webhooks_failing .. id)
  redis.call('ZREM', KEY.webhooks_lanes, id)
else
  redis.call('HSET', KEY.webhooks, id, document)
end

audit(KEY.audit, ARGV[5])

local wanted = {}
for _, endpoint in pairs(endpoints) do
  if endpoint.enabled and type(endpoint.events) == 'table' then
    for _, event in ipairs(endpoint.events) do wanted[event] = true end
  end
end
for at = 6, #ARGV do
  if wanted[ARGV[at]] then
    redis.call('HSET', KEY.webhooks_wanted, ':' .. ARGV[at], '1')
  else
    redis.call('HDEL', KEY.webhooks_wanted, ':' .. ARGV[at])
  end
end
return 'ok'
