-- Takes due deliveries to send them, each with a lease; what a dead supervisor held is taken when its lease has ended.
-- One a lane and round, the lane first that wasn't looked at for the longest time: none keeps the others waiting.
--
-- ARGV[1]  token of this call, by which its leases are known; ARGV[2] lease in ms; ARGV[3] at most so many deliveries
-- ARGV[4]  at most so many at once in a lane; ARGV[5] and in one whose last attempt failed
-- Returns  {now_ms, ms until there may be more to do (-1: nothing waits),
--           {id, endpoint as JSON or false, webhook, task, event, url, body, attempts, created_ms}, ...}

local token, lease_ms, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now_ms = clock()
local taken = {}

-- Takes one delivery of the lane, if one is due and there is room for it.
local function take(lane, most)
  local waiting, sending = KEY.webhooks_waiting .. lane, KEY.webhooks_sending .. lane
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', sending, '-inf', now_ms, 'LIMIT', 0, 100)) do
    redis.call('ZREM', sending, id)
    redis.call('ZADD', waiting, now_ms, id)
  end
  local id = redis.call('ZRANGEBYSCORE', waiting, '-inf', now_ms, 'LIMIT', 0, 1)[1]
  if not id or redis.call('ZCARD', sending) >= most then return end
  redis.call('ZREM', waiting, id)
  local key = KEY.delivery .. id
  local f = redis.call('HMGET', key, 'webhook', 'task', 'event', 'url', 'body', 'created_ms')
  if not f[1] then return end -- it expired
  redis.call('ZADD', sending, now_ms + lease_ms, id)
  redis.call('HSET', key, 'token', token)
  local attempts = redis.call('HINCRBY', key, 'attempts', 1)
  table.insert(taken, {id, redis.call('HGET', KEY.webhooks, f[1]), f[1], f[2], f[3], f[4], f[5], attempts, f[6]})
end

-- Enters the lane for when there is something to do next: a delivery is due and there is room, or a lease ends.
local function schedule(lane, most, round)
  local waiting, sending = KEY.webhooks_waiting .. lane, KEY.webhooks_sending .. lane
  local at_ms = redis.call('ZCARD', sending) < most and tonumber(redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2])
  -- The fraction keeps those that were looked at in this call in order, behind all the others that are due.
  if at_ms and at_ms <= now_ms then at_ms = now_ms + round / 1000 end
  local lease_ends_ms = tonumber(redis.call('ZRANGE', sending, 0, 0, 'WITHSCORES')[2])
  if lease_ends_ms and not (at_ms and at_ms < lease_ends_ms) then at_ms = lease_ends_ms end
  if at_ms then
    redis.call('ZADD', KEY.webhooks_lanes, string.format('%.3f', at_ms), lane)
  else
    redis.call('ZREM', KEY.webhooks_lanes, lane)
  end
end

pass_when_full()
for round = 1, 3 * limit + 10 do
  if #taken >= limit then break end
  local lane = redis.call('ZRANGEBYSCORE', KEY.webhooks_lanes, '-inf', now_ms + 0.999, 'LIMIT', 0, 1)[1]
  if not lane then break end
  local most = tonumber(redis.call('EXISTS', KEY.webhooks_failing .. lane) == 1 and ARGV[5] or ARGV[4])
  take(lane, most)
  schedule(lane, most, round)
end

local first = redis.call('ZRANGE', KEY.webhooks_lanes, 0, 0, 'WITHSCORES')[2]
return {now_ms, first and math.ceil(math.max(0, first - now_ms)) or -1, unpack(taken)}
