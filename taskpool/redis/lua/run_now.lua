-- Queues a scheduled task at once.
--
-- ARGV[1]  id
-- ARGV[2]  mark of this call, by which it is known when it is sent again
-- Returns  'ok' (also when sent again) | 'gone' | 'foreign' (it is another program's) | RQ's word of the status that
--          doesn't allow it

local move = moves()
local id, mark = ARGV[1], ARGV[2]
local f = move.record(id, 'status', 'origin', 'seq', 'type', 'by_call')
if not f.status then return 'gone' end
if f.by_call == mark then return 'ok' end
if f.status ~= RQ.scheduled then return f.status end
if not f.type then return 'foreign' end

local now_ms, stamp = clock()
redis.call('ZREM', KEY.scheduled .. f.origin, id)
redis.call('HDEL', KEY.job .. id, 'run_ms', 'run_clock')
move.queue_task(id, f.origin, f.seq, false, EVENT.queued, ',"queued_by":"hand"', now_ms, stamp, 'by_call', mark)
return 'ok'
