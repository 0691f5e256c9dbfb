-- Operations on many tasks.

-- A list of the last operations that have changed a task, with one more.
local function with_operation(list, operation)
  list = list and list .. ',' .. operation or operation
  local _, commas = string.gsub(list, ',', '')
  return commas < KEY.operations_noted and list or string.sub(list, string.find(list, ',', 1, true) + 1)
end

-- The work that a change of a task is part of: an operation on many tasks or, with the `key` of its hash, a redrive. `driver`
-- is the program that made the call; nil or '': a change by itself. `mark`: by this the call is known when it is sent again.
local function work_of(mark, driver, key)
  local is_work = driver and driver ~= ''
  local is_operation = is_work and not key
  key = key or KEY.operation .. mark

  -- Whether the program must not go on: another one does, or the work has ended.
  local function is_lost()
    if not is_work then return false end
    local f = redis.call('HMGET', key, 'status', 'driver')
    return f[1] ~= KEY.operation_running or f[2] ~= driver
  end

  -- Whether it has changed a task before. `f`: by_call and operations of its record.
  local function has_changed(f)
    if f.by_call == mark then return mark ~= '' end
    return is_operation and f.operations and string.find(',' .. f.operations .. ',', ',' .. mark .. ',', 1, true) ~= nil
  end

  -- Counts the change of a task. Returns the fields of its record that tell of it, and their values.
  local function fields(f)
    if not is_operation then return 'by_call', mark end
    redis.call('HINCRBY', key, 'changed', 1)
    return 'by_call', mark, 'operations', with_operation(f.operations, mark)
  end

  return {is_lost = is_lost, has_changed = has_changed, fields = fields}
end

-- Appends an entry about an operation or a redrive to the audit: with the number of tasks that it has changed.
local function audit_counted(entry, count)
  if not entry or entry == '' then return end
  local document = cjson.decode(entry)
  document.count = tonumber(count) or 0
  audit(KEY.audit_tasks, cjson.encode(document))
end

-- Ends an operation. The list of its tasks is kept as long as it can be undone (`undo_s`; nil: not at all). Of one that
-- undoes another, it is that one's. `entry` is one of the audit.
local function end_operation(id, status, undo_s, entry, now_ms)
  local key = KEY.operation .. id
  local f = redis.call('HMGET', key, 'created_ms', 'undoes', 'action', 'changed')
  redis.call('HSET', key, 'status', status, 'ended_ms', string.format('%.0f', now_ms))
  redis.call('HDEL', key, 'driver', 'driver_ms')
  redis.call('SREM', KEY.operations_running, id)
  redis.call('EXPIRE', key, KEY.operation_kept_s)
  if f[2] then redis.call('UNLINK', KEY.operation .. f[2] .. KEY.operation_tasks) end
  local until_ms = undo_s and now_ms + undo_s * 1000 or 0
  -- Removed records are kept for KEY.trash_s from their removal on.
  if f[3] == 'remove' then until_ms = math.min(until_ms, f[1] + KEY.trash_s * 1000) end
  local tasks = key .. KEY.operation_tasks
  if until_ms <= now_ms then
    redis.call('UNLINK', tasks)
  else
    redis.call('HSET', key, 'undo_ms', string.format('%.0f', until_ms))
    redis.call('PEXPIRE', tasks, string.format('%.0f', until_ms - now_ms + KEY.expiry_slack_s * 1000))
  end
  audit_counted(entry, f[4])
end

-- The keys that go with a task's record.
local function keys_of_record(id)
  return {KEY.job .. id, KEY.results .. id, KEY.log .. id, KEY.checkpoint .. id, KEY.secrets .. id, KEY.needed .. id,
    KEY.added .. id, KEY.revivable .. id}
end
