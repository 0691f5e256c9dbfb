-- Operations on many tasks.

-- Ends an operation. The list of its tasks is kept as long as it can be undone (`undo_s`; nil: not at all). Of one that
-- undoes another, it is that one's.
local function end_operation(id, status, undo_s, now_ms)
  local key = KEY.operation .. id
  local f = redis.call('HMGET', key, 'created_ms', 'undoes')
  redis.call('HSET', key, 'status', status, 'ended_ms', string.format('%.0f', now_ms))
  redis.call('HDEL', key, 'driver', 'driver_ms')
  redis.call('SREM', KEY.operations_running, id)
  redis.call('EXPIRE', key, KEY.operation_kept_s)
  if f[2] then redis.call('UNLINK', KEY.operation .. f[2] .. KEY.operation_tasks) end
  -- Removed records are kept for KEY.trash_s from their removal on.
  local until_ms = undo_s and math.min(now_ms + undo_s * 1000, f[1] + KEY.trash_s * 1000) or 0
  local tasks = key .. KEY.operation_tasks
  if until_ms <= now_ms then
    redis.call('UNLINK', tasks)
  else
    redis.call('HSET', key, 'undo_ms', string.format('%.0f', until_ms))
    redis.call('PEXPIRE', tasks, string.format('%.0f', until_ms - now_ms + KEY.expiry_slack_s * 1000))
  end
end

-- The keys that go with a task's record.
local function keys_of_record(id)
  return {KEY.job .. id, KEY.results .. id, KEY.log .. id, KEY.checkpoint .. id, KEY.secrets .. id, KEY.needed .. id,
    KEY.added .. id, KEY.revivable .. id}
end
