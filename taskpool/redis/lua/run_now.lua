-- Queues a scheduled task at once.
--
-- ARGV[1]  id
-- ARGV[2]  mark of this call, by which it is known when it is sent again
-- ARGV[3]  the program that goes on with the operation of this mark; nil = there is none
-- Returns  'ok' (also when sent again) | 'gone' | 'foreign' (it is another program's) | 'lost' (another program goes on
--          with the operation, or it has ended) | RQ's word of the status that doesn't allow it

local move = moves()
local id, work = ARGV[1], work_of(ARGV[2], ARGV[3])
if work.is_lost() then return 'lost' end
local f = move.record(id, 'status', 'origin', 'seq', 'type', 'by_call', 'operations')
if not f.status then return 'gone' end
if work.has_changed(f) then return 'ok' end
if f.status ~= RQ.scheduled then return f.status end
if not f.type then return 'foreign' end

local now_ms, stamp = clock()
redis.call('ZREM', KEY.scheduled .. f.origin, id)
redis.call('HDEL', KEY.job .. id, 'run_ms', 'run_clock')
move.queue_task(id, f.origin, f.seq, false, EVENT.queued, ',"queued_by":"hand"', now_ms, stamp, work.fields(f))
return 'ok'
