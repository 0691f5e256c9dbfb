-- Ends the attempt and with it the task: done, failed or stopped.
--
-- ARGV[1..4]  id, attempt id, queue, worker name
-- ARGV[5]     status: done | failed | stopped
-- ARGV[6]     seconds the record is kept; negative: for ever
-- ARGV[7]     result as JSON ('' unless done)
-- ARGV[8..10] error, failure as JSON, reason ('' = none)
-- ARGV[11]    traceback as RQ stores it in its result stream ('' = none); of an RQ function that is done, its result as
--             RQ stores it there
-- ARGV[12]    type, for a record that a plain RQ producer made
-- ARGV[13]    '1': it is a job of plain RQ, so other RQ jobs may wait for it
-- Returns     'ok' | 'children' (dependents wait in the outbox) | 'lost' (the lease is another's: nothing changed).
--             Sent again because the answer was lost, it answers as at first and changes nothing

local id, attempt_id, queue, worker, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key = KEY.job .. id
local TOLD_BYTES = 1024

local f = redis.call('HMGET', key, 'attempt_id', 'status', 'seq', 'type', 'attempt', 'started_at', 'history',
  'secret_ttl', 'log')
if f[1] ~= attempt_id or f[2] ~= RQ.in_progress then
  drop_attempt(id, attempt_id, queue, worker)
  if f[1] == attempt_id and f[2] == (status == STATUS.done and RQ.done or status) then
    -- It ended so; by this very call? A reaper or a supervisor may have ended it as well.
    local wrote = redis.call('HMGET', key, 'result', 'failure', 'reason')
    if (status == STATUS.done and wrote[1] == ARGV[7]) or (wrote[2] == ARGV[9] and wrote[3] == ARGV[10]) then
      return redis.call('EXISTS', KEY.dependents .. id) == 1 and 'children' or 'ok'
    end
  end
  return 'lost'
end

local now_ms, stamp = clock()
local seq = tonumber(f[3]) + 1
local more, aside = '', nil
drop_attempt(id, attempt_id, queue, worker) -- first: see there
if status == STATUS.done then
  if f[8] then -- a done task can't be retried by hand
    redis.call('DEL', KEY.secrets .. id)
    redis.call('ZREM', KEY.secrets_index, id)
  end
  redis.call('HSET', key, 'status', RQ.done, 'ended_at', stamp, 'seq', seq, 'result', ARGV[7])
  if ARGV[11] ~= '' then
    redis.call('XADD', KEY.results .. id, 'MAXLEN', 10, '*', 'type', 1, 'worker_name', worker, 'return_value', ARGV[11],
      'execution_id', attempt_id)
    if tonumber(ARGV[6]) >= 0 then redis.call('EXPIRE', KEY.results .. id, math.max(ARGV[6], KEY.least_ttl_s) + KEY.expiry_slack_s) end
  end
  if f[7] then
    redis.call('HSET', key, 'history', history_with(f[7], f[5], worker, f[6], stamp, status, ''))
  elseif ARGV[7] ~= '' and #ARGV[7] <= TOLD_BYTES then -- who waits for a small result needn't read the record for it
    aside = ',"attempt":' .. f[5] .. ',"started_at":"' .. f[6] .. '","worker":' .. cjson.encode(worker)
      .. ',"result":' .. ARGV[7]
  end
else
  redis.call('HSET', key, 'status', status, 'ended_at', stamp, 'seq', seq, 'error', ARGV[8], 'failure', ARGV[9],
    'reason', ARGV[10], 'history', history_with(f[7], f[5], worker, f[6], stamp, status, ARGV[8]))
  more = ',"error":' .. cjson.encode(ARGV[8])
  redis.call('XADD', KEY.results .. id, 'MAXLEN', 10, '*', 'type', status == STATUS.stopped and 3 or 2, 'worker_name', worker,
    'exc_string', ARGV[11], 'execution_id', attempt_id)
  if tonumber(ARGV[6]) >= 0 then redis.call('EXPIRE', KEY.results .. id, ARGV[6] + KEY.expiry_slack_s) end
end
if not f[4] then
  redis.call('HSET', key, 'type', ARGV[12])
  redis.call('ZADD', KEY.by_type .. ARGV[12], 0, id)
  redis.call('SADD', KEY.types_used, ARGV[12])
end
if ARGV[13] == '1' and redis.call('EXISTS', key .. KEY.rq_dependents) == 1 then redis.call('SADD', KEY.rq_outbox, id) end
local children = retain(id, (status == STATUS.done and KEY.finished or KEY.failed) .. queue, tonumber(ARGV[6]), now_ms,
  f[8], f[9])
emit(id, seq, status, status, now_ms, more, aside)
return children and 'children' or 'ok'
