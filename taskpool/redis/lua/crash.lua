-- Settles an attempt whose process is gone, or whose lease has ended: the task runs again, or ends when its attempts keep
-- dying. A lease that has ended proves nothing about the process: such an end has the reason 'lease_lost'.
--
-- ARGV[1..3]  id, attempt id, queue
-- ARGV[4]     max_crashes
-- ARGV[5..6]  error, failure as JSON
-- ARGV[7]     the error as RQ stores tracebacks
-- ARGV[8]     '1': only if the lease has ended (the reaper); a time in ms: only if it had ended by then, too; '': the
--             process is known to be dead
-- ARGV[9]     the failure as JSON of a task that was asked to stop
-- ARGV[10]    the reason of the end: 'crashed' | 'lease_lost' (always when ARGV[8] isn't '')
-- ARGV[11]    '1': other tasks ran in the process, and it isn't known which of them was the cause. Then nothing is
--             counted: the task is queued again as a suspect, which runs alone
-- Returns     'queued' | 'given_back' (it is a suspect now) | 'failed' | 'stopped' (a stop was asked) | 'lost' |
--             'unseen' (a claim that no process saw has expired,
--             see unseen.lua: nothing was changed, it is to be given back)

local id, attempt_id, queue, max_crashes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local presumed, reason = ARGV[8] ~= '', ARGV[10]
local key, member = KEY.job .. id, id .. ':' .. attempt_id
local now_ms, stamp = clock()

local score = redis.call('ZSCORE', KEY.wip .. queue, member)
local f = redis.call('HMGET', key, 'attempt_id', 'status', 'seq', 'crashes', 'stop_ms', 'failure_ttl', 'worker_name',
  'history', 'attempt', 'started_at', 'secret_ttl', 'log', 'suspect')
-- The record may be another attempt's by now, or deleted by a dashboard: then the execution tells whose it was. RQ's own
-- has an id.
local execution = redis.call('HMGET', KEY.execution .. member, 'worker_name', 'id', 'unseen', 'created_at',
  'last_heartbeat')
local worker = execution[1] or f[7] or ''
local ours = f[1] == attempt_id
if presumed then
  local is_late = ours or execution[1] and not execution[2]
  local ends_ms = score and (score - (is_late and KEY.wip_grace_s or 0)) * 1000
  local by_ms = ARGV[8] == '1' and now_ms or math.min(now_ms, tonumber(ARGV[8]))
  if not ends_ms or ends_ms > by_ms then return 'lost' end
  -- One that has had a heartbeat since was seen after all.
  local is_unseen = execution[3] and execution[4] == execution[5]
  if ours and f[2] == RQ.in_progress and not f[5] and is_unseen then return 'unseen' end
end
-- A plain RQ worker's execution has no attempt id on the record: it counts while no attempt of ours holds the lease.
local plain = not ours and f[2] == RQ.in_progress and score
  and not (f[1] and redis.call('ZSCORE', KEY.wip .. queue, id .. ':' .. f[1]))
if plain then -- of another program's job RQ's own maintenance says what becomes of it
  local _, is_task = foreign_jobs()
  if not is_task(id, redis.call('HGET', key, 'type'), '') then return 'lost' end
end
if f[2] ~= RQ.in_progress or not (ours or plain) then
  drop_attempt(id, attempt_id, queue, worker)
  return 'lost'
end

local seq, crashes = tonumber(f[3] or 0) + 1, tonumber(f[4] or 0) + 1
local ttl_s = tonumber(f[6]) or KEY.failure_ttl_s
-- A task that was asked to stop is known to be stopped only if its process is known to be gone.
local stop_reason = presumed and reason or STATUS.stopped
local suspicions = (tonumber(f[13]) or 0) + 1
local uncounted = ARGV[11] == '1' and not f[5] and suspicions <= KEY.most_suspicions
local history = history_with(f[8], tonumber(f[9]) or 0, worker, f[10], stamp,
  f[5] and stop_reason or uncounted and 'given_back' or reason, ARGV[5])
drop_attempt(id, attempt_id, queue, worker)

local function told(why)
  return why == 'lease_lost' and ',"reason":"lease_lost"' or ''
end

local function settle(status, why, failure)
  redis.call('HSET', key, 'status', status, 'ended_at', stamp, 'seq', seq, 'crashes', crashes, 'error', ARGV[5],
    'failure', failure, 'reason', why, 'history', history)
  redis.call('XADD', KEY.results .. id, 'MAXLEN', 10, '*', 'type', status == STATUS.stopped and 3 or 2, 'worker_name', worker,
    'exc_string', ARGV[7], 'execution_id', attempt_id)
  if ttl_s >= 0 then redis.call('EXPIRE', KEY.results .. id, ttl_s + KEY.expiry_slack_s) end
  if redis.call('EXISTS', key .. KEY.rq_dependents) == 1 then redis.call('SADD', KEY.rq_outbox, id) end
  retain(id, KEY.failed .. queue, ttl_s, now_ms, f[11], f[12])
  emit(id, seq, status, status, now_ms, ',"error":' .. cjson.encode(ARGV[5]) .. told(why))
  return status
end

if f[5] then return settle(STATUS.stopped, stop_reason, ARGV[9]) end
if uncounted then
  redis.call('HSET', key, 'status', RQ.queued, 'seq', seq, 'attempt', math.max((tonumber(f[9]) or 0) - 1, 0),
    'attempt_id', '', 'enqueued_at', stamp, 'suspect', suspicions, 'history', history)
  redis.call('HDEL', key, 'progress')
  enqueue(id, queue, true)
  emit(id, seq, 'crashed', STATUS.queued, now_ms, ',"error":' .. cjson.encode(ARGV[5]) .. ',"crashes":' .. crashes - 1)
  return 'given_back'
end
if crashes >= max_crashes then return settle(STATUS.failed, reason, ARGV[6]) end

redis.call('HSET', key, 'status', RQ.queued, 'seq', seq, 'crashes', crashes, 'attempt_id', '', 'enqueued_at', stamp,
  'error', ARGV[5], 'failure', ARGV[6], 'history', history)
enqueue(id, queue, true)
emit(id, seq, reason, STATUS.queued, now_ms, ',"error":' .. cjson.encode(ARGV[5]) .. ',"crashes":' .. crashes
  .. told(reason))
return STATUS.queued
