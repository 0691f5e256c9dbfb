-- New lives of failed, stopped and canceled tasks: what revive.lua (by hand), uncancel.lua and release.lua (tasks that were
-- canceled because of one that is retried) share.

-- The functions below, by name.
local function lives()
  local move, edge, gate = moves(), edges(), gates()

  -- The fields of a record that the functions below read.
  local function record_of(id)
    local f = move.record(id, 'status', 'dependency_ids', 'edges', 'attempt', 'max_attempts', 'attempts_a_life', 'by_call',
      'unique', 'pending', 'canceled_by', 'workflow', 'expires_ms', 'expires_clock', 'operations', 'unique_ms',
      'error_before', 'started_at', unpack(gate.FIELDS))
    if not f.origin then f.status = nil end -- what belongs to no queue is no task
    return f
  end

  -- The edges of an ended task, weighed anew; for how many of them it has to wait; and one that keeps it from running, or
  -- nil. All that it waited for ended as it needed if it was released once; the records may be gone since. (Earlier
  -- releases took `pending` from tasks that they released or retried.)
  local function weighed(f)
    local attempts, pending = tonumber(f.attempt or 0), tonumber(f.pending)
    local was_released = pending and pending <= 0 or not pending and attempts > 0
    local list = edge.list_of(f.dependency_ids, f.edges)
    local broken
    pending, broken = edge.weigh(list)
    if not was_released then return list, pending, broken end
    for _, each in ipairs(list) do
      if each.verdict ~= 'ok' then each.outcome, each.verdict = 'gone', 'ok' end -- nothing is noted with it
    end
    return list, 0, nil
  end

  -- Why a task can't run again, besides its parents: 'secrets' (they are no longer kept) | 'unique ID' (that task holds
  -- its unique key) | nil.
  local function obstacle(id, f, now_ms)
    if f.secret_ttl and redis.call('EXISTS', KEY.secrets .. id) == 0 then return 'secrets' end
    local name = f.unique and string.match(f.unique, ' (%S+)$')
    local holder = name and unique_keys().holder_of(name, now_ms)
    return holder and holder ~= id and 'unique ' .. holder or nil
  end

  -- Begins a new life after these checks. `list` has its edges, as they were weighed; `pending`, how many of them it has
  -- to wait for. `...`: more fields of the record. With `f.is_restored`, it goes on with the life that it had.
  local function begin(id, f, list, pending, now_ms, stamp, ...)
    local key = KEY.job .. id
    redis.call('ZREM', KEY.failed .. f.origin, id)
    redis.call('ZREM', KEY.canceled .. f.origin, id)
    redis.call('PERSIST', key)
    local name = f.unique and string.match(f.unique, ' (%S+)$')
    if name and string.sub(f.unique, 1, 4) ~= 'time' then
      unique_keys().hold(name, id)
    elseif name and f.is_restored and f.unique_ms and tonumber(f.unique_ms) > now_ms then
      unique_keys().hold(name, id, tonumber(f.unique_ms))
    end
    redis.call('EXPIRE', KEY.log .. id, KEY.log_idle_ttl_s)
    redis.call('HDEL', key, 'ended_at', 'error', 'reason', 'asked_ms', 'answer_by_ms', 'asked_clock', 'question',
      'canceled_by', 'by_call', 'unique_ms', 'error_before')
    if f.is_restored and f.error_before then redis.call('HSET', key, 'error', f.error_before) end
    if not f.is_restored then
      redis.call('HDEL', key, 'failure', 'fingerprint', 'progress', 'stop_ms', 'stop_grace_s', 'stop_force', 'expires_ms',
        'crashes', 'suspect', 'snoozes', 'attempt_id', 'worker_name', 'started_at', 'asked', 'answers')
    elseif f.expires_ms and not f.started_at then
      local expires_ms = string.format('%.0f', expiry_of(f.expires_ms, f.expires_clock))
      redis.call('ZADD', KEY.expiring, expires_ms / 1000, id)
      redis.call('HSET', key, 'expires_ms', expires_ms, 'expires_clock', clock_base(now_ms))
    end
    if f.dependency_ids or f.edges then redis.call('HSET', key, 'pending', pending) end
    -- One that has ended may not have released it yet, and must not count for this life again.
    for _, each in ipairs(list) do
      local place, member = edge.place_of(each, id)
      if each.outcome then redis.call('SREM', place, member) end
    end
    edge.enter(id, list, nil, now_ms)
    -- Attempts are counted through all lives; each life has as many as the first.
    local attempts_a_life = tonumber(f.attempts_a_life or f.max_attempts or 1)
    if not f.is_restored then
      redis.call('HSET', key, 'attempts_a_life', attempts_a_life, 'max_attempts',
        (tonumber(f.attempt) or 0) + attempts_a_life)
    end
    f.asked_ms = nil
    local more = f.is_restored and ',"restored_by":"hand"' or ',"retried_by":"hand"'
    if pending == 0 then
      gate.pass(id, f, more, now_ms, stamp, ...)
    else
      if f.secret_ttl then move.keep_secrets(id, f.secret_ttl, 0) end
      move.wait_task(id, f.origin, f.seq, more, now_ms, ...)
    end
    if f.workflow then members().count(id, f.workflow, now_ms, stamp) end
  end

  return {record_of = record_of, weighed = weighed, obstacle = obstacle, begin = begin}
end
