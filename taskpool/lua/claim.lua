-- Takes the next ready task of the first queue that has one, for one attempt.
--
-- ARGV[1]  worker name
-- ARGV[2]  attempt id: the fencing token of this attempt
-- ARGV[3]  lease in ms
-- ARGV[4]  '1' when the worker was shown as idle until now; 'again' when this call may be sent twice: a task that this
--          attempt has claimed already is then answered once more
-- ARGV[5+] queues, most urgent first
-- Returns  {id, queue, type, data, attempt, max_attempts, timeout, result_ttl, failure_ttl, enqueued_at, started_ms,
--           parents, timeout_ms, backoff, snoozes, secrets (false: it has none; '': they are no longer kept), trace},
--           or false: nothing is ready, or `rq suspend` holds

local worker, attempt_id, lease_ms, was_idle = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local BOUND = 200 -- ids looked at in one call: stale ones are skipped

local now_ms, stamp = clock()
local looked_at = 0

local function fields_of(id)
  return redis.call('HMGET', KEY.job .. id, 'status', 'type', 'data', 'attempt', 'max_attempts', 'timeout',
    'result_ttl', 'failure_ttl', 'enqueued_at', 'seq', 'expires_ms', 'dependency_ids', 'timeout_ms', 'started_at',
    'backoff', 'snoozes', 'secret_ttl', 'trace')
end

local function answer(id, queue, f, attempt)
  local secrets = f[17] and (redis.call('GETEX', KEY.secrets .. id, 'EX', f[17] + math.max(tonumber(f[6]) or 0, 0)) or '')
  return {id, queue, f[2], f[3], attempt, f[5], f[6], f[7], f[8], f[9], string.format('%.0f', now_ms), f[12], f[13],
    f[15], f[16], secrets, f[18]}
end

if ARGV[4] == 'again' then
  for _, member in ipairs(redis.call('SMEMBERS', KEY.worker .. worker .. ':executions')) do
    local id, of = string.match(member, '^([%w_-]+):(.+)$')
    if of == attempt_id then
      local held = redis.call('HMGET', KEY.job .. id, 'attempt_id', 'status', 'origin', 'attempt')
      if held[1] == attempt_id and held[2] == 'started' then
        return answer(id, held[3], fields_of(id), tonumber(held[4]))
      end
    end
  end
end
if redis.call('EXISTS', KEY.suspended) == 1 then return false end

for argument = 5, #ARGV do
  local queue = ARGV[argument]
  local id = redis.call('LPOP', KEY.queue .. queue)
  while id do
    local key = KEY.job .. id
    local f = fields_of(id)

    -- Only a queued record is started. Anything else is a leftover (removed by a dashboard, queued twice): skip it.
    if f[1] == 'queued' and string.find(id, '^[%w_-]+$') then
      local attempt, seq = tonumber(f[4] or 0) + 1, tonumber(f[10] or 0) + 1
      if f[11] then redis.call('ZREM', KEY.expiring, id) end

      -- A task that was started in time, whatever became of that attempt, no longer expires.
      if f[11] and not f[14] and tonumber(f[11]) <= now_ms then
        redis.call('HSET', key, 'status', 'canceled', 'ended_at', stamp, 'reason', 'expired', 'seq', seq,
          'error', 'canceled: it was not started before it expired')
        retain(id, KEY.canceled .. queue, tonumber(f[8]) or 604800, now_ms, f[17])
        emit(id, seq, 'canceled', 'canceled', now_ms, ',"reason":"expired"')
      else
        -- RQ's own enqueue and a dashboard's requeue leave an expiry or the last attempt's end on the record.
        if attempt > 1 or not f[2] then
          redis.call('PERSIST', key)
          -- A reason says that the task had ended, so this is a new life: its crashes don't count on.
          if redis.call('HEXISTS', key, 'reason') == 1 then redis.call('HDEL', key, 'crashes') end
          redis.call('HDEL', key, 'ended_at', 'error', 'failure', 'reason', 'progress', 'stop_ms', 'stop_grace_s',
            'stop_force')
        end
        redis.call('HSET', key, 'status', 'started', 'started_at', stamp, 'worker_name', worker, 'attempt', attempt,
          'attempt_id', attempt_id, 'seq', seq)
        local member = id .. ':' .. attempt_id
        redis.call('ZADD', KEY.wip .. queue, string.format('%.3f', (now_ms + lease_ms) / 1000 + KEY.wip_grace_s), member)
        redis.call('HSET', KEY.execution .. member, 'job_id', id, 'created_at', now_ms / 1000, 'last_heartbeat',
          now_ms / 1000, 'worker_name', worker)
        redis.call('EXPIRE', KEY.execution .. member, KEY.wip_grace_s)
        redis.call('SADD', KEY.worker .. worker .. ':executions', member)
        if was_idle and redis.call('EXISTS', KEY.worker .. worker) == 1 then
          redis.call('HSET', KEY.worker .. worker, 'state', 'busy')
        end
        emit(id, seq, 'started', 'in_progress', now_ms, ',"attempt":' .. attempt)
        return answer(id, queue, f, attempt)
      end
    end

    looked_at = looked_at + 1
    if looked_at >= BOUND then
      ring(queue, 1) -- come back at once
      return false
    end
    id = redis.call('LPOP', KEY.queue .. queue)
  end
end

-- Every queue is empty: what still rings is stale.
for argument = 5, #ARGV do redis.call('DEL', KEY.doorbell .. ARGV[argument]) end
if not was_idle and redis.call('EXISTS', KEY.worker .. worker) == 1 then
  redis.call('HSET', KEY.worker .. worker, 'state', 'idle')
end
return false
