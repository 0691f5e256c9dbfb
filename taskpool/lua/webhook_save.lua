-- Stores or removes an endpoint, and says anew which events any endpoint wants.
--
-- ARGV[1]  id
-- ARGV[2]  the endpoint as JSON; '' = remove it with its deliveries
-- ARGV[3]  the revision that it must have now; '0' = it must not exist yet
-- ARGV[4]  at most so many endpoints
-- ARGV[5]  entry of the audit; '' = none
-- ARGV[6+] every event there is
-- Returns  'ok' (also when sent again) | 'gone' | 'changed' (it has another revision) | 'full'

local id, document, revision = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = redis.call('HGET', KEY.webhooks, id)
if now and now == document then return 'ok' end
if not now and revision > 0 then return 'gone' end
if now and cjson.decode(now).revision ~= revision then return 'changed' end
if not now and redis.call('HLEN', KEY.webhooks) >= tonumber(ARGV[4]) then return 'full' end

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
for _, each in ipairs(redis.call('HVALS', KEY.webhooks)) do
  local endpoint = cjson.decode(each)
  if endpoint.enabled then
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
