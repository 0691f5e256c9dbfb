-- Queues a scheduled task whose time has come. A job of another program is left to RQ's scheduler, which looks each
-- second. If it is still there later, no such scheduler runs: then it is queued as RQ would do it, without an event.
--
-- ARGV[1..2]  id, queue
-- ARGV[3]     RQ functions that are run here, as for `claim`: their jobs are tasks
-- Returns     'ok' | 'early' (also when its time was to be corrected after a step of the clock) | 'foreign' (left to RQ's
--             scheduler) | 'gone' (no longer scheduled: the entry is dropped)

local move = moves()
local id, queue = ARGV[1], ARGV[2]
local key = KEY.job .. id
local score = redis.call('ZSCORE', KEY.scheduled .. queue, id)
if not score then return 'gone' end

local now_ms, stamp = clock()
if score * 1000 > now_ms then return 'early' end
local f = fields_of_record(id, 'status', 'seq', 'run_clock', 'type', 'enqueue_at_front')
local is_foreign = false
if f[1] == RQ.scheduled and not f[4] then
  is_foreign = not foreign_jobs().is_task(id, nil, ',' .. string.sub(ARGV[3], 2) .. ',')
  if is_foreign and now_ms - score * 1000 < KEY.rq_scheduler_s * 1000 then return 'foreign' end
end
local due_ms = score * 1000 + (moved_ms(f[3]) or 0)
if due_ms > now_ms and f[1] == RQ.scheduled then
  redis.call('ZADD', KEY.scheduled .. queue, string.format('%.3f', due_ms / 1000), id)
  redis.call('HSET', key, 'run_ms', string.format('%.0f', due_ms), 'run_clock', clock_base(now_ms))
  return 'early'
end
redis.call('ZREM', KEY.scheduled .. queue, id)
if f[1] ~= RQ.scheduled then return 'gone' end
if is_foreign then
  redis.call('HSET', key, 'status', RQ.queued, 'enqueued_at', stamp)
  enqueue(id, queue, f[5] == '1')
  return 'ok'
end

move.queue_task(id, queue, f[2], false, EVENT.queued, '', now_ms, stamp)
return 'ok'
