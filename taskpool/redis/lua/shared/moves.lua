-- Moves of tasks from one status to another, for the scripts that make them.

-- The functions below, by name: moves of tasks. They are made only when a script asks for them, because each function
-- of the prelude costs every claim and every submission.
local function moves()
  -- Enters a task among those that wait for their time.
  local function schedule(id, queue, due_ms, now_ms)
    redis.call('ZADD', KEY.scheduled .. queue, string.format('%.3f', due_ms / 1000), id)
    if due_ms - now_ms < KEY.soon_ms then redis.call('PUBLISH', KEY.soon, string.format('%.0f', due_ms - now_ms)) end
  end

  -- Keeps a task's secrets for `ttl_s` seconds from the time in `delay_ms`, at which it is to run.
  local function keep_secrets(id, ttl_s, delay_ms)
    redis.call('EXPIRE', KEY.secrets .. id, ttl_s + math.ceil(delay_ms / 1000))
  end

  -- Lines with one more, the last `most` of them (KEY.history_cap).
  local function with_line(lines, line, most)
    if not lines then return line end
    local _, breaks = string.gsub(lines, '\n', '')
    if breaks + 2 > (most or KEY.history_cap) then lines = string.sub(lines, string.find(lines, '\n', 1, true) + 1) end
    return lines .. '\n' .. line
  end

  -- A task's history with one more attempt that has ended: JSON documents, one a line. It is kept from the first
  -- attempt on that doesn't end well: a task that is done at once has none, and costs nothing for it.
  local function history_with(history, attempt, worker, started_at, ended_at, outcome, error)
    return with_line(history, '{"attempt":' .. attempt .. ',"worker":' .. cjson.encode(worker) .. ',"started_at":'
      .. cjson.encode(started_at or ended_at) .. ',"ended_at":"' .. ended_at .. '","outcome":"' .. outcome .. '"'
      .. (error == '' and '' or ',"error":' .. cjson.encode(error)) .. '}')
  end

  -- Fields of a task's record, by name. One that the record doesn't have is nil.
  local function record(id, ...)
    local names, f = {...}, {}
    for at, value in ipairs(redis.call('HMGET', KEY.job .. id, ...)) do f[names[at]] = value or nil end
    return f
  end

  -- The ids in a JSON list of a record; none if it isn't one: another program may have written anything.
  local function ids_in(list)
    local is_json, found = pcall(cjson.decode, list or '')
    local ids = {}
    for _, id in ipairs(is_json and type(found) == 'table' and found or {}) do
      if type(id) == 'string' then ids[#ids + 1] = id end
    end
    return ids
  end

  -- Writes the type of a task that another program stored. It counts as submitted now.
  local function set_type(id, type, queue, now_ms)
    redis.call('HSET', KEY.job .. id, 'type', type)
    redis.call('ZADD', KEY.by_type .. type, 0, id)
    redis.call('SADD', KEY.types_used, type)
    note_submitted(type, queue, 1, now_ms)
  end

  -- Queues a task whose record has the sequence number `seq` before: record, queue, event. `...`: more fields of the
  -- record.
  local function queue_task(id, queue, seq, front, event, more, now_ms, stamp, ...)
    seq = tonumber(seq or 0) + 1
    redis.call('HSET', KEY.job .. id, 'status', RQ.queued, 'enqueued_at', stamp, 'seq', seq, ...)
    enqueue(id, queue, front)
    emit(id, seq, event, STATUS.queued, now_ms, more)
  end

  -- The same for a task that is to run at `due_ms`.
  local function schedule_task(id, queue, seq, due_ms, event, more, now_ms, ...)
    seq = tonumber(seq or 0) + 1
    redis.call('HSET', KEY.job .. id, 'status', RQ.scheduled, 'seq', seq, 'run_ms', string.format('%.0f', due_ms), ...)
    schedule(id, queue, due_ms, now_ms)
    emit(id, seq, event, STATUS.scheduled, now_ms, more)
  end

  -- The same for a task that is to wait for others.
  local function wait_task(id, queue, seq, more, now_ms, ...)
    seq = tonumber(seq or 0) + 1
    redis.call('HSET', KEY.job .. id, 'status', RQ.waiting, 'seq', seq, ...)
    redis.call('ZADD', KEY.deferred .. queue, string.format('%.3f', now_ms / 1000), id)
    emit(id, seq, EVENT.waiting, STATUS.waiting, now_ms, more)
  end

  -- Cancels a task that hasn't started: record, registry, event. `f` has these fields of its record by name: origin,
  -- seq, failure_ttl, secret_ttl, log. The caller takes it out of its queue. Returns true when other tasks wait for it.
  local function cancel_task(id, f, reason, error, more, now_ms, stamp)
    local seq, workflow, type = tonumber(f.seq or 0) + 1, unpack(redis.call('HMGET', KEY.job .. id, 'workflow', 'type'))
    redis.call('ZREM', KEY.scheduled .. f.origin, id)
    redis.call('ZREM', KEY.deferred .. f.origin, id)
    redis.call('ZREM', KEY.expiring, id)
    if redis.call('ZREM', KEY.confirmations, id) == 1 then
      redis.call('HDEL', KEY.job .. id, 'asked_ms', 'answer_by_ms', 'asked_clock', 'question')
    end
    redis.call('HSET', KEY.job .. id, 'status', RQ.canceled, 'ended_at', stamp, 'seq', seq, 'reason', reason, 'error', error)
    local has_children = retain(id, KEY.canceled .. f.origin, tonumber(f.failure_ttl) or KEY.failure_ttl_s, now_ms,
      f.secret_ttl, f.log, workflow)
    emit(id, seq, EVENT.canceled, STATUS.canceled, now_ms, ',"reason":"' .. reason .. '"' .. more)
    tally(reason == 'expired' and reason or STATUS.canceled, type, f.origin, nil, now_ms)
    if workflow and members().count(id, workflow, now_ms, stamp) then has_children = true end
    return has_children
  end

  -- Adds the outcome of an attempt to RQ's result stream of the task, which is kept as long as its record. `kind` is
  -- RQ's number of it: 1 done, 2 failed, 3 stopped.
  local function add_result(id, attempt_id, worker, kind, name, value, ttl_s)
    redis.call('XADD', KEY.results .. id, 'MAXLEN', 10, '*', 'type', kind, 'worker_name', worker, name, value,
      'execution_id', attempt_id)
    if ttl_s >= 0 then redis.call('EXPIRE', KEY.results .. id, ttl_s + KEY.expiry_slack_s) end
  end

  -- Takes a task out of an index. The name of an index without tasks leaves the set of the names in use.
  local function leave_index(index, name, names, id)
    redis.call('ZREM', index .. name, id)
    if redis.call('EXISTS', index .. name) == 1 or names == KEY.types_used and is_submitted_now(name) then return end
    redis.call('SREM', names, name)
  end

  return {
    schedule = schedule,
    keep_secrets = keep_secrets,
    with_line = with_line,
    history_with = history_with,
    record = record,
    ids_in = ids_in,
    set_type = set_type,
    queue_task = queue_task,
    schedule_task = schedule_task,
    wait_task = wait_task,
    cancel_task = cancel_task,
    add_result = add_result,
    leave_index = leave_index,
  }
end
