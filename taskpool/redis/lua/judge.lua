-- Settles a task that a plain RQ worker failed. One that the worker couldn't read has not run: it is scheduled again,
-- for a worker that can. It may be taken by such a worker again, so each time it waits longer, and in the end it stays
-- failed.
--
-- ARGV[1]  id
-- ARGV[2]  the id of the entry in RQ's result stream that was judged
-- ARGV[3]  '1': the worker couldn't read the task; '': its failure stands
-- ARGV[4]  error of a task that stays failed because such workers took it again and again
-- Returns  'scheduled' | 'failed' (its failure stands) | 'lost' (it has moved on since, or was judged already)

local move = moves()
local id, entry = ARGV[1], ARGV[2]
local MOST, LONGEST_S = 20, 60
local key = KEY.job .. id
local f = move.record(id, 'status', 'origin', 'seq', 'misreads', 'secret_ttl', 'rq_failure')
local last = redis.call('XREVRANGE', KEY.results .. id, '+', '-', 'COUNT', 1)[1]
if f.status ~= RQ.failed or not last or last[1] ~= entry or f.rq_failure == entry then return 'lost' end

pass_when_full()
redis.call('HSET', key, 'rq_failure', entry)
if ARGV[3] ~= '1' then return STATUS.failed end

local misreads = tonumber(f.misreads or 0) + 1
if misreads > MOST then
  redis.call('HSET', key, 'reason', 'rq_worker', 'error', ARGV[4])
  return STATUS.failed
end

-- `ended_at` stays: it tells the claim that the task's unique key was free for a while.
local now_ms = clock()
local delay_ms = math.min(2 ^ (misreads - 1), LONGEST_S) * 1000
redis.call('ZREM', KEY.failed .. f.origin, id)
redis.call('PERSIST', key)
if f.secret_ttl then move.keep_secrets(id, f.secret_ttl, delay_ms) end
move.schedule_task(id, f.origin, f.seq, now_ms + delay_ms, EVENT.scheduled, '', now_ms, 'misreads', misreads)
return STATUS.scheduled
