-- Ends the attempt but not the task: it runs again, later (a retry, a snooze) or when a worker is free (given back on
-- drain).
--
-- ARGV[1..4]  id, attempt id, queue, worker name
-- ARGV[5]     delay in ms; '0' = at once
-- ARGV[6]     '': the attempt counts; 'snooze': it doesn't, but the snooze does; '1': it doesn't, and the task goes to
--             the front of its queue
-- ARGV[7..8]  error, failure as JSON ('' = none); of a snooze, only the event has the error
-- ARGV[9]     of a failure, what its group is made of, as JSON ('' = none)
-- ARGV[10]    its type
-- Returns     'ok' (also when sent again) | 'stopping' (a stop was asked: finish it as stopped) | 'lost'

local move = moves()
local id, attempt_id, queue, worker, delay_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local is_given_back, is_snoozed = ARGV[6] == '1', ARGV[6] == 'snooze'
local is_counted = not (is_given_back or is_snoozed)
local outcome = is_given_back and 'given_back' or is_snoozed and 'snoozed' or STATUS.failed
local event = is_given_back and EVENT.queued or is_snoozed and 'snoozed' or 'retry'
local key = KEY.job .. id

-- By this a call is recognised that is sent again: the attempt id can't stay on a record that no attempt holds.
local mark = attempt_id .. (is_given_back and ':given_back' or is_snoozed and ':snooze' or ':retry')

local f = move.record(id, 'attempt_id', 'status', 'seq', 'attempt', 'stop_ms', 'put_back', 'history', 'started_at',
  'secret_ttl', 'retries_left', 'suspect', 'type')
if f.attempt_id ~= attempt_id or f.status ~= RQ.in_progress then
  drop_attempt(id, attempt_id, queue, worker)
  return f.put_back == mark and 'ok' or 'lost'
end
if f.stop_ms then return STATUS.stopping end

local now_ms, stamp = clock()
drop_attempt(id, attempt_id, queue, worker) -- first: see there
redis.call('HSET', key, 'attempt_id', '', 'attempt', f.attempt - (is_counted and 0 or 1), 'put_back', mark, 'history',
  move.history_with(f.history, f.attempt, worker, f.started_at, stamp, outcome, ARGV[7]))
if is_counted then
  -- The claim of a second attempt takes back what the first one left; the one after an uncounted first would not.
  if ARGV[7] ~= '' then redis.call('HSET', key, 'error', ARGV[7], 'failure', ARGV[8]) end
  rarely().note_failure(id, ARGV[10], queue, worker, ARGV[9], ARGV[7], false, now_ms)
  if f.suspect then redis.call('HDEL', key, 'suspect') end -- it has ended by itself
  -- RQ's own count, for an RQ worker that takes the job next.
  local retries = tonumber(f.retries_left)
  if retries then redis.call('HSET', key, 'retries_left', math.max(retries - 1, 0)) end
else
  redis.call('HDEL', key, 'progress')
end
if is_given_back then tally(outcome, f.type, queue, nil, now_ms) end
if is_snoozed then redis.call('HINCRBY', key, 'snoozes', 1) end
if f.secret_ttl then move.keep_secrets(id, f.secret_ttl, delay_ms) end
local more = ARGV[7] ~= '' and (',"error":' .. cjson.encode(ARGV[7]) .. ',"delay_ms":' .. delay_ms) or ''
if delay_ms > 0 then
  move.schedule_task(id, queue, f.seq, now_ms + delay_ms, event, more, now_ms, 'run_clock', clock_base(now_ms))
else
  move.queue_task(id, queue, f.seq, is_given_back, event, more, now_ms, stamp)
end
return 'ok'
