-- Ends an attempt to send a delivery.
--
-- ARGV[1..2]  delivery, token of the call that took it
-- ARGV[3]     'delivered' | 'failed' (it is tried again) | 'dead' (it isn't) | 'given_back' (not sent; it doesn't count)
-- ARGV[4]     ms until it is tried again
-- ARGV[5]     the attempt as JSON ('' = nothing to tell)
-- Returns     'ok' | 'lost' (its lease ended and another supervisor took it, or it was dropped: nothing changed)

local id, outcome = ARGV[1], ARGV[3]
local key = KEY.delivery .. id
local f = redis.call('HMGET', key, 'token', 'lane', 'log', 'webhook')
if f[1] ~= ARGV[2] then return 'lost' end

local now_ms = clock()
local lane = f[2]
redis.call('ZREM', KEY.webhooks_sending .. lane, id)
redis.call('ZREM', KEY.webhooks_waiting .. lane, id) -- the lease has ended, but no supervisor took it yet
redis.call('HDEL', key, 'token', 'clock')
if ARGV[5] ~= '' then
  redis.call('HSET', key, 'log', moves().with_line(f[3], ARGV[5]))
  redis.call('HINCRBY', KEY.counters, 'webhooks|' .. outcome, 1)
end
if outcome == 'delivered' or outcome == 'dead' then
  redis.call('HSET', key, 'status', outcome)
else
  wait_in(lane, id, now_ms + ARGV[4], now_ms)
end
if outcome == 'given_back' then redis.call('HINCRBY', key, 'attempts', -1) end
if outcome == 'delivered' then
  redis.call('DEL', KEY.webhooks_failing .. lane)
elseif outcome ~= 'given_back' then
  redis.call('SET', KEY.webhooks_failing .. lane, ARGV[5], 'EX', KEY.webhooks_failing_s)
end
redis.call('EXPIRE', key, outcome == 'delivered' and KEY.delivered_kept_s or KEY.delivery_kept_s)
if outcome == 'dead' then
  list_delivery(KEY.deliveries_dead .. f[4], id, 'dead')
  list_delivery(KEY.deliveries_all_dead, id, '')
end
wake_lane(lane, now_ms)
return 'ok'
