-- Gives a failed, stopped or canceled task a new life by hand: queued again, for a new attempt.
--
-- ARGV[1]  id
-- ARGV[2]  mark of this call, by which it is known when it is sent again
-- ARGV[3]  entry of the audit; '' = none
-- Needs    unique
-- Returns  'ok' (also when sent again, whatever became of the task since) | 'gone' | 'dependency ID STATUS' (that parent
--          hasn't ended well: RQ's word of its status, or 'gone') | 'secrets' (they are no longer kept) | 'unique ID'
--          (that task holds its unique key) | RQ's word of the status that doesn't allow it

local move = moves()
local id, mark = ARGV[1], ARGV[2]
local key = KEY.job .. id
local f = move.record(id, 'status', 'origin', 'seq', 'dependency_ids', 'attempt', 'max_attempts', 'attempts_a_life',
  'by_call', 'secret_ttl', 'unique', 'pending')
if not f.status then return 'gone' end
if f.by_call == mark then return 'ok' end
if not RQ_SET.retryable[f.status] then return f.status end

-- All of its parents ended well if it was released once; their records may be gone since. (Earlier releases took
-- `pending` from tasks that they released or retried.)
local attempts, pending, parents = tonumber(f.attempt or 0), tonumber(f.pending), {}
local was_released = pending and pending <= 0 or not pending and attempts > 0
for _, parent in ipairs(move.ids_in(f.dependency_ids)) do
  local parent_status = redis.call('HGET', KEY.job .. parent, 'status')
  if parent_status == RQ.done then
    table.insert(parents, parent)
  elseif not was_released then
    return 'dependency ' .. parent .. ' ' .. (parent_status or 'gone')
  end
end
if f.secret_ttl and redis.call('EXISTS', KEY.secrets .. id) == 0 then return 'secrets' end

local now_ms, stamp = clock()
local name = f.unique and string.match(f.unique, ' (%S+)$')
local uniques = name and unique_keys()
local holder = name and uniques.holder_of(name, now_ms)
if holder and holder ~= id then return 'unique ' .. holder end

redis.call('ZREM', KEY.failed .. f.origin, id)
redis.call('ZREM', KEY.canceled .. f.origin, id)
redis.call('PERSIST', key)
if f.secret_ttl then move.keep_secrets(id, f.secret_ttl, 0) end
if name and string.sub(f.unique, 1, 4) ~= 'time' then uniques.hold(name, id) end
redis.call('EXPIRE', KEY.log .. id, KEY.log_idle_ttl_s)
redis.call('HDEL', key, 'ended_at', 'error', 'failure', 'reason', 'progress', 'stop_ms', 'stop_grace_s', 'stop_force',
  'expires_ms', 'run_ms', 'crashes', 'suspect', 'snoozes', 'attempt_id', 'worker_name', 'started_at')
if f.dependency_ids then redis.call('HSET', key, 'pending', 0) end
for _, parent in ipairs(parents) do
  redis.call('SADD', KEY.needed .. parent, id)
  keep_for_children(parent, true)
end
-- Attempts are counted through all lives; each life has as many as the first.
local attempts_a_life = tonumber(f.attempts_a_life or f.max_attempts or 1)
move.queue_task(id, f.origin, f.seq, false, EVENT.queued, ',"retried_by":"hand"', now_ms, stamp, 'attempts_a_life',
  attempts_a_life, 'max_attempts', attempts + attempts_a_life, 'by_call', mark)
audit(KEY.audit_tasks, ARGV[3])
return 'ok'
