-- Settles an attempt whose process is gone, or whose lease has ended: the task runs again, or ends when its attempts
-- keep dying. A lease that has ended proves nothing about the process: such an end has the reason 'lease_lost'.
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
-- ARGV[12]    what the group of the failure is made of, as JSON ('' = none)
-- ARGV[13]    the worker name; '' = it isn't known
-- Returns     'queued' | 'given_back' (it is a suspect now) | 'failed' | 'stopped' (a stop was asked) | 'lost' |
--             'unseen' (a claim that no process saw has expired,
--             see unseen.lua: nothing was changed, it is to be given back)

local move = moves()
local id, attempt_id, queue, max_crashes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local presumed, reason = ARGV[8] ~= '', ARGV[10]
local key, member = KEY.job .. id, id .. ':' .. attempt_id
local now_ms, stamp = clock()

local score = redis.call('ZSCORE', KEY.wip .. queue, member)
local f = move.record(id, 'attempt_id', 'status', 'seq', 'crashes', 'stop_ms', 'failure_ttl', 'worker_name',
  'history', 'attempt', 'started_at', 'secret_ttl', 'log', 'suspect', 'type', 'workflow')
-- The record may be another attempt's by now, or deleted by a dashboard: then the execution tells whose it was, if there has
-- been a heartbeat. RQ's own has an id.
local execution = redis.call('HMGET', KEY.execution .. member, 'worker_name', 'id', 'job_id', 'unseen', 'created_at',
  'last_heartbeat')
local worker = ARGV[13] ~= '' and ARGV[13] or execution[1] or f.worker_name or ''
local is_running, is_ours = f.status == RQ.in_progress, f.attempt_id == attempt_id
if presumed then
  local is_late = not execution[2] -- RQ's own lease ends when its entry says
  local ends_ms = score and (score - (is_late and KEY.wip_grace_s or 0)) * 1000
  local by_ms = ARGV[8] == '1' and now_ms or math.min(now_ms, tonumber(ARGV[8]))
  if not ends_ms or ends_ms > by_ms then return 'lost' end
  -- An attempt that has had a heartbeat since was seen after all.
  local is_unseen = not execution[3] and redis.call('HGET', KEY.unseen .. worker, member) == 'unseen'
    or execution[4] and execution[5] == execution[6] -- as supervisors of the release before mark it
  if is_ours and is_running and not f.stop_ms and is_unseen then return 'unseen' end
end
-- A plain RQ worker's execution has no attempt id on the record: it counts while no attempt of ours holds the lease.
local is_plain = not is_ours and is_running and score
  and not (f.attempt_id and redis.call('ZSCORE', KEY.wip .. queue, id .. ':' .. f.attempt_id))
-- RQ's own maintenance settles another program's job.
if is_plain and not foreign_jobs().is_task(id, f.type, '') then return 'lost' end
drop_attempt(id, attempt_id, queue, worker)
if not is_running or not (is_ours or is_plain) then return 'lost' end

local crashes, attempt = tonumber(f.crashes or 0) + 1, tonumber(f.attempt) or 0
local suspicions = (tonumber(f.suspect) or 0) + 1
-- Of tasks that were claimed together, it isn't known which one ran when their host died: the others had ended, or not begun.
local is_of_batch = presumed and not execution[3] and string.find(attempt_id, '%-%d+$')
local is_uncounted = (ARGV[11] == '1' or is_of_batch) and not f.stop_ms and suspicions <= KEY.most_suspicions
local error = ARGV[5] .. (is_of_batch and is_uncounted and KEY.none_charged or '')
local more = ',"error":' .. cjson.encode(error)
local lost_lease = ',"reason":"lease_lost"'

-- The build is that of the worker, if its entry is still there.
local function count_end(outcome)
  tally(outcome, f.type, queue, redis.call('HGET', KEY.worker .. worker, 'build'), now_ms)
end

local function history(outcome)
  return move.history_with(f.history, attempt, worker, f.started_at, stamp, outcome, error)
end

local function note(is_end)
  rarely().note_failure(id, f.type or KEY.unknown_type, queue, worker, ARGV[12], ARGV[5], is_end, now_ms)
end

local function settle(status, why, failure)
  local seq, ttl_s = tonumber(f.seq or 0) + 1, tonumber(f.failure_ttl) or KEY.failure_ttl_s
  redis.call('HSET', key, 'status', status, 'ended_at', stamp, 'seq', seq, 'crashes', crashes, 'error', ARGV[5],
    'failure', failure, 'reason', why, 'history', history(why))
  if status == STATUS.failed then note(true) end
  local kind = status == STATUS.stopped and 3 or 2
  move.add_result(id, attempt_id, worker, kind, 'exc_string', ARGV[7], f.workflow and -1 or ttl_s)
  if redis.call('EXISTS', key .. KEY.rq_dependents) == 1 then redis.call('SADD', KEY.rq_outbox, id) end
  retain(id, KEY.failed .. queue, ttl_s, now_ms, f.secret_ttl, f.log, f.workflow)
  emit(id, seq, status, status, now_ms, more .. (why == 'lease_lost' and lost_lease or ''))
  count_end(why)
  if f.workflow then members().count(id, f.workflow, now_ms, stamp) end
  return status
end

-- A task that was asked to stop is known to be stopped only if its process is known to be gone.
if f.stop_ms then return settle(STATUS.stopped, presumed and reason or STATUS.stopped, ARGV[9]) end
if is_uncounted then
  redis.call('HDEL', key, 'progress')
  more = more .. ',"crashes":' .. crashes - 1 .. (reason == 'lease_lost' and lost_lease or '')
  move.queue_task(id, queue, f.seq, true, reason, more, now_ms, stamp, 'attempt', math.max(attempt - 1, 0), 'attempt_id', '',
    'suspect', suspicions, 'history', history('given_back'))
  count_end('given_back')
  return 'given_back'
end
if crashes >= max_crashes then return settle(STATUS.failed, reason, ARGV[6]) end

more = more .. ',"crashes":' .. crashes .. (reason == 'lease_lost' and lost_lease or '')
move.queue_task(id, queue, f.seq, true, reason, more, now_ms, stamp, 'crashes', crashes, 'attempt_id', '', 'error', ARGV[5],
  'failure', ARGV[6], 'history', history(reason))
count_end(reason)
note(false)
return STATUS.queued
