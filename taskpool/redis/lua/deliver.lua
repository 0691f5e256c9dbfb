-- Makes deliveries of one event of the outbox, once: for a second caller the event is gone.
--
-- ARGV[1]  the event's id in the outbox; '' = a message that is about no event
-- ARGV[2+] for each delivery: id, lane, endpoint, task ('' = none), event, url, body
-- Returns  'ok' | 'gone'

local entry = ARGV[1]
if entry ~= '' and redis.call('XDEL', KEY.webhooks_outbox, entry) == 0 then return 'gone' end

local now_ms = clock()
for at = 2, #ARGV, 7 do
  local id, lane, endpoint, task = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if redis.call('ZCARD', KEY.webhooks_waiting .. lane) >= KEY.webhooks_lane_max then
    redis.call('HINCRBY', KEY.counters, 'webhooks|dropped', 1)
  elseif redis.call('EXISTS', KEY.delivery .. id) == 0 then
    redis.call('HSET', KEY.delivery .. id, 'webhook', endpoint, 'lane', lane, 'task', task, 'event', ARGV[at + 4],
      'url', ARGV[at + 5], 'body', ARGV[at + 6], 'status', 'pending', 'created_ms', now_ms, 'attempts', 0)
    redis.call('EXPIRE', KEY.delivery .. id, KEY.delivery_kept_s)
    wait_in(lane, id, now_ms, now_ms)
    wake_lane(lane, now_ms)
    list_delivery(KEY.deliveries .. endpoint, id, 'delivered')
    if task ~= '' then list_delivery(KEY.deliveries_of_task .. task, id, '') end
  end
end
return 'ok'
