-- Gives a failed, stopped or canceled task a new life by hand: queued again, for a new attempt.
--
-- ARGV[1]  id
-- ARGV[2]  mark of this call, by which it is known when it is sent again
-- ARGV[3]  entry of the audit; '' = none
-- Returns  'ok' (also when sent again, whatever became of the task since) | 'gone' | 'dependency ID STATUS' (that parent
--          hasn't ended well: RQ's word of its status, or 'gone') | 'secrets' (they are no longer kept) | 'unique ID'
--          (that task holds its unique key) | RQ's word of the status that doesn't allow it

local id, mark = ARGV[1], ARGV[2]
local key = KEY.job .. id
local f = redis.call('HMGET', key, 'status', 'origin', 'seq', 'dependency_ids', 'attempt', 'max_attempts',
  'attempts_a_life', 'by_call', 'secret_ttl', 'unique', 'pending')
local status, queue = f[1], f[2]
if not status then return 'gone' end
if f[8] == mark then return 'ok' end
if not RQ_SET.retryable[status] then return status end

-- All of its parents ended well if it was released once; their records may be gone since. (The release before this one
-- took `pending` from tasks that it released or retried.)
local pending, parents = tonumber(f[11]), {}
local was_released = pending and pending <= 0 or not pending and tonumber(f[5] or 0) > 0
for parent in string.gmatch(f[4] or '', '"([%w_-]+)"') do
  local parent_status = redis.call('HGET', KEY.job .. parent, 'status')
  if parent_status == RQ.done then
    table.insert(parents, parent)
  elseif not was_released then
    return 'dependency ' .. parent .. ' ' .. (parent_status or 'gone')
  end
end
if f[9] and redis.call('EXISTS', KEY.secrets .. id) == 0 then return 'secrets' end

local now_ms, stamp = clock()
local name = f[10] and string.match(f[10], ' (%S+)$')
local uniques = name and unique_keys()
local holder = name and uniques.holder_of(name, now_ms)
if holder and holder ~= id then return 'unique ' .. holder end

local seq = tonumber(f[3] or 0) + 1
redis.call('ZREM', KEY.failed .. queue, id)
redis.call('ZREM', KEY.canceled .. queue, id)
redis.call('PERSIST', key)
if f[9] then keep_secrets(id, f[9], 0) end
if name and string.sub(f[10], 1, 4) ~= 'time' then uniques.hold(name, id) end
redis.call('EXPIRE', KEY.log .. id, KEY.log_idle_ttl_s)
redis.call('HDEL', key, 'ended_at', 'error', 'failure', 'reason', 'progress', 'stop_ms', 'stop_grace_s', 'stop_force',
  'expires_ms', 'run_ms', 'crashes', 'suspect', 'snoozes', 'attempt_id', 'worker_name', 'started_at')
if f[4] then redis.call('HSET', key, 'pending', 0) end
for _, parent in ipairs(parents) do
  redis.call('SADD', KEY.needed .. parent, id)
  keep_for_children(parent, true)
end
-- Attempts are counted through all lives; each life has as many as the first.
local attempts_a_life = tonumber(f[7] or f[6] or 1)
redis.call('HSET', key, 'status', RQ.queued, 'enqueued_at', stamp, 'seq', seq, 'attempts_a_life', attempts_a_life,
  'max_attempts', tonumber(f[5] or 0) + attempts_a_life, 'by_call', mark)
enqueue(id, queue, false)
emit(id, seq, EVENT.queued, STATUS.queued, now_ms, ',"retried_by":"hand"')
audit(KEY.audit_tasks, ARGV[3])
return 'ok'
