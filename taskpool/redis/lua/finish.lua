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
-- ARGV[14]    of a failure, what its group is made of, as JSON ('' = none)
-- Returns     'ok' | 'children' (dependents wait in the outbox) | 'lost' (another attempt holds the lease: nothing changed).
--             Sent again because the answer was lost, it answers as at first and changes nothing

local id, attempt_id, queue, worker, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key = KEY.job .. id

local f = redis.call('HMGET', key, 'attempt_id', 'status', 'seq', 'type', 'attempt', 'started_at', 'history',
  'secret_ttl', 'log', 'workflow', 'last_heartbeat')
if f[1] ~= attempt_id or f[2] ~= RQ.in_progress then
  drop_attempt(id, attempt_id, queue, worker)
  if f[1] == attempt_id and f[2] == (status == STATUS.done and RQ.done or status) then
    -- It ended so; by this very call? A reaper or a supervisor may have ended it as well.
    local wrote = redis.call('HMGET', key, 'result', 'failure', 'reason')
    if (status == STATUS.done and wrote[1] == ARGV[7]) or (wrote[2] == ARGV[9] and wrote[3] == ARGV[10]) then
      return redis.call('SISMEMBER', KEY.outbox, id) == 1 and 'children' or 'ok'
    end
  end
  return 'lost'
end

local now_ms, stamp = clock()
local seq, ttl_s = tonumber(f[3]) + 1, tonumber(ARGV[6])
local more, aside, registry = '', nil, KEY.failed
drop_attempt(id, attempt_id, queue, worker, not f[11]) -- first: see there
if status == STATUS.done then
  registry = KEY.finished
  if f[8] then -- a done task can't be retried by hand
    redis.call('DEL', KEY.secrets .. id)
    redis.call('ZREM', KEY.secrets_index, id)
  end
  redis.call('HSET', key, 'status', RQ.done, 'ended_at', stamp, 'seq', seq, 'result', ARGV[7])
  if ARGV[11] ~= '' then
    local kept_s = ttl_s < 0 and ttl_s or math.max(ttl_s, KEY.least_ttl_s)
    rarely().moves().add_result(id, attempt_id, worker, 1, 'return_value', ARGV[11], kept_s)
  end
  if f[7] then
    redis.call('HSET', key, 'history', rarely().moves().history_with(f[7], f[5], worker, f[6], stamp, status, ''))
  else
    aside = result_aside(f[5], f[6], worker, ARGV[7])
  end
else
  redis.call('HSET', key, 'status', status, 'ended_at', stamp, 'seq', seq, 'error', ARGV[8], 'failure', ARGV[9],
    'reason', ARGV[10], 'history', rarely().moves().history_with(f[7], f[5], worker, f[6], stamp, status, ARGV[8]))
  more = ',"error":' .. cjson.encode(ARGV[8])
  local kind = status == STATUS.stopped and 3 or 2
  rarely().moves().add_result(id, attempt_id, worker, kind, 'exc_string', ARGV[11], f[10] and -1 or ttl_s)
  if status == STATUS.failed then
    rarely().note_failure(id, f[4] or ARGV[12], queue, worker, ARGV[14], ARGV[8], true, now_ms)
  end
end
if not f[4] then rarely().moves().set_type(id, ARGV[12], queue, now_ms) end
if ARGV[13] == '1' and redis.call('EXISTS', key .. KEY.rq_dependents) == 1 then redis.call('SADD', KEY.rq_outbox, id) end
local has_children = retain(id, registry .. queue, ttl_s, now_ms, f[8], f[9], f[10])
emit(id, seq, status, status, now_ms, more, aside)
if f[10] and rarely().members().count(id, f[10], now_ms, stamp) then has_children = true end
return has_children and 'children' or 'ok'
