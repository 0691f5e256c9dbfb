-- Sends a delivery again, with all its attempts, or the next attempt of one that waits: now.
--
-- ARGV[1]  delivery
-- ARGV[2]  entry of the audit; '' = none
-- Returns  'ok' (also when it is to be sent at once anyway) | 'gone' | 'sending' (it is being sent at this moment)

local id = ARGV[1]
local key = KEY.delivery .. id
local f = redis.call('HMGET', key, 'lane', 'token', 'webhook', 'attempts')
if not f[1] then return 'gone' end
local now_ms = clock()
local lease = f[2] and redis.call('ZSCORE', KEY.webhooks_sending .. f[1], id)
if lease and tonumber(lease) > now_ms then return 'sending' end
local due_ms = redis.call('ZSCORE', KEY.webhooks_waiting .. f[1], id)
if due_ms and tonumber(due_ms) <= now_ms and f[4] == '0' then return 'ok' end

redis.call('HSET', key, 'status', 'pending', 'attempts', 0)
redis.call('HDEL', key, 'clock')
redis.call('EXPIRE', key, KEY.delivery_kept_s)
redis.call('ZREM', KEY.webhooks_sending .. f[1], id)
wait_in(f[1], id, now_ms, now_ms)
redis.call('ZREM', KEY.deliveries_dead .. f[3], id)
redis.call('ZREM', KEY.deliveries_all_dead, id)
list_delivery(KEY.deliveries .. f[3], id, 'delivered')
wake_lane(f[1], now_ms)
audit(KEY.audit, ARGV[2])
return 'ok'
