-- Ends the attempt but not the task: it runs again, later (a retry, a snooze) or when a worker is free (given back on
-- drain).
--
-- ARGV[1..4]  id, attempt id, queue, worker name
-- ARGV[5]     delay in ms; '0' = at once
-- ARGV[6]     '': the attempt counts; 'snooze': it doesn't, but the snooze does; '1': it doesn't, and the task goes to
--             the front of its queue
-- ARGV[7..8]  error, failure as JSON ('' = none); of a snooze, the error is only told
-- Returns     'ok' (also when sent again) | 'stopping' (a stop was asked: finish it as stopped) | 'lost'

local id, attempt_id, queue, worker = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local delay_ms, given_back, snoozed = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[6] == 'snooze'
local uncounted = given_back or snoozed
local key = KEY.job .. id

-- What this call is told by when it is sent again: the attempt id can't stay on a record that no attempt holds.
local mark = attempt_id .. (given_back and ':given_back' or snoozed and ':snooze' or ':retry')

local f = redis.call('HMGET', key, 'attempt_id', 'status', 'seq', 'attempt', 'stop_ms', 'put_back', 'history',
  'started_at', 'secret_ttl', 'retries_left', 'suspect')
if f[1] ~= attempt_id or f[2] ~= RQ.in_progress then
  drop_attempt(id, attempt_id, queue, worker)
  return f[6] == mark and 'ok' or 'lost'
end
if f[5] then return STATUS.stopping end

local now_ms, stamp = clock()
local seq = tonumber(f[3]) + 1
local status = delay_ms > 0 and STATUS.scheduled or STATUS.queued
drop_attempt(id, attempt_id, queue, worker) -- first: see there
redis.call('HSET', key, 'status', status, 'seq', seq, 'attempt_id', '', 'attempt', f[4] - (uncounted and 1 or 0),
  'put_back', mark, 'history', history_with(f[7], f[4], worker, f[8], stamp,
    given_back and 'given_back' or snoozed and 'snoozed' or STATUS.failed, ARGV[7]))
-- The claim of a second attempt takes back what the first one left; the one after an uncounted first would not.
if ARGV[7] ~= '' and not uncounted then redis.call('HSET', key, 'error', ARGV[7], 'failure', ARGV[8]) end
if uncounted then redis.call('HDEL', key, 'progress') end
if f[11] and not uncounted then redis.call('HDEL', key, 'suspect') end -- it has ended by itself
-- RQ's own count, which an RQ worker reads that takes the job next.
if f[10] and not uncounted and tonumber(f[10]) then
  redis.call('HSET', key, 'retries_left', math.max(tonumber(f[10]) - 1, 0))
end
if snoozed then redis.call('HINCRBY', key, 'snoozes', 1) end
if f[9] then keep_secrets(id, f[9], delay_ms) end
if delay_ms > 0 then
  redis.call('HSET', key, 'run_ms', string.format('%.0f', now_ms + delay_ms), 'run_clock', clock_base(now_ms))
  schedule(id, queue, now_ms + delay_ms, now_ms)
else
  redis.call('HSET', key, 'enqueued_at', stamp)
  enqueue(id, queue, given_back)
end
local more = ARGV[7] ~= '' and (',"error":' .. cjson.encode(ARGV[7]) .. ',"delay_ms":' .. delay_ms) or ''
emit(id, seq, given_back and EVENT.queued or snoozed and 'snoozed' or 'retry', status, now_ms, more)
return 'ok'
