-- What the scripts of deliveries share. A lane is what must not starve another: an endpoint, or a callback's host. Its
-- deliveries wait in one sorted set and are being sent in another; `lanes` says when there is something to do in it.

-- Makes sure that the lane is looked at by `at_ms`.
local function wake_lane(lane, at_ms)
  local score = redis.call('ZSCORE', KEY.webhooks_lanes, lane)
  if not score or tonumber(score) > at_ms then redis.call('ZADD', KEY.webhooks_lanes, at_ms, lane) end
end

-- Enters a delivery among those that wait, until `due_ms`. Those that wait are moved by a step of Redis's clock, except
-- one that was entered after the step, before any pool noticed it (see step.lua): then its `clock` says so.
local function wait_in(lane, id, due_ms, now_ms)
  redis.call('ZADD', KEY.webhooks_waiting .. lane, due_ms, id)
  local base = clock_base(now_ms)
  if string.find(base, ':', 1, true) then redis.call('HSET', KEY.delivery .. id, 'clock', base) end
end

-- Enters a delivery into a list of the last ones. What falls out of it is dropped, if it has this status.
local function list_delivery(key, id, dropped_status)
  redis.call('ZADD', key, 0, id)
  redis.call('EXPIRE', key, KEY.delivery_kept_s)
  if redis.call('ZCARD', key) <= KEY.deliveries_max then return end
  local oldest = redis.call('ZPOPMIN', key)[1]
  if redis.call('HGET', KEY.delivery .. oldest, 'status') == dropped_status then
    redis.call('DEL', KEY.delivery .. oldest)
  end
end
