-- What all scripts share: the clock, events, doorbells. calls.py puts it in front of each script.
-- Before a script is loaded, calls.py replaces these names by constants of Python:
--   KEY.<name>      a key, a time or a number of keys.py
--   STATUS.<name>   the word of a status that events show; `name` is that of types.TaskStatus
--   RQ.<name>       RQ's word of that status, which the record holds
--   EVENT.<name>    the event of a move to that status
--   RQ_SET.<name>   a set of RQ's words, {word = true}; for its names see keys.RQ_SET

-- Redis's time: milliseconds since 1970, and RQ's text of it ("2026-01-31T12:00:00.000Z").
-- The calendar is Howard Hinnant's civil_from_days (public domain), because Redis offers no os.date.
local function clock()
  local time = redis.call('TIME')
  local seconds, millis = tonumber(time[1]), (time[2] - time[2] % 1000) / 1000
  local rest = seconds % 86400
  local z = (seconds - rest) / 86400 + 719468
  local doe = z % 146097
  local yoe = doe - (doe - doe % 1460) / 1460 + (doe - doe % 36524) / 36524 - (doe - doe % 146096) / 146096
  yoe = (yoe - yoe % 365) / 365
  local doy = doe - (365 * yoe + (yoe - yoe % 4) / 4 - (yoe - yoe % 100) / 100)
  local mp = 5 * doy + 2
  mp = (mp - mp % 153) / 153
  local year, month, days_before = yoe + (z - doe) / 146097 * 400, mp + 3, 153 * mp + 2
  if month > 12 then year, month = year + 1, month - 12 end
  local minutes = (rest - rest % 60) / 60
  local stamp = string.format('%d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month,
    doy - (days_before - days_before % 5) / 5 + 1, (minutes - minutes % 60) / 60, minutes % 60, rest % 60, millis)
  return seconds * 1000 + millis, stamp
end

-- What is kept beside a time that was computed from a duration at `now_ms`, so that it can be corrected after a step of
-- Redis's clock (see steps.lua): the sum of all known steps. If the time differs from what the pools have seen last,
-- the clock may have been stepped, and no pool has noticed yet: then that difference stands behind it,
-- "sum:difference".
local function clock_base(now_ms)
  local f = redis.call('HMGET', KEY.clock, 'stepped_ms', 'seen_ms')
  local base, ahead_ms = f[1] or '0', now_ms - (tonumber(f[2]) or now_ms)
  if ahead_ms >= 0 and ahead_ms <= KEY.seen_often_ms then return base end
  return string.format('%s:%.0f', base, ahead_ms)
end

-- Whether any endpoint or callback wants events. A script asks once; nil before.
local webhooks_wanted

-- Puts an event into the outbox of webhooks if an endpoint or its task's callback wants it, with what filters and the
-- message's body need of the task as it is now. A full outbox (no supervisor empties it) loses events; they are
-- counted.
local function tell_webhooks(id, event, document)
  local wanted = redis.call('HMGET', KEY.webhooks_wanted, ':' .. event, id)
  local calls_back = wanted[2] and string.find(wanted[2], ',' .. event .. ',', 1, true)
  if not (wanted[1] or calls_back) then return end
  if redis.call('XLEN', KEY.webhooks_outbox) >= KEY.webhooks_outbox_max then
    redis.call('HINCRBY', KEY.counters, 'webhooks|lost', 1)
    return
  end
  local f = redis.call('HMGET', KEY.job .. id, 'type', 'origin', 'tags', 'attempt', 'max_attempts', 'created_at',
    'started_at', 'ended_at', 'project', 'callback_url')
  redis.call('XADD', KEY.webhooks_outbox, '*', 'event', document, 'type', f[1] or '', 'queue', f[2] or '', 'tags',
    f[3] or '', 'attempt', f[4] or '', 'max_attempts', f[5] or '', 'created_at', f[6] or '', 'started_at', f[7] or '',
    'ended_at', f[8] or '', 'project', f[9] or '', 'callback_url', calls_back and f[10] or '')
end

-- One event: kept in the capped stream, and published on the task's channel with its id in the stream. `more` is '' or
-- JSON members, ',"k":v'; `aside` (or nil) is more of them for those who listen now, and isn't kept: what stands behind
-- "stream" in a message. There is no second channel for all tasks: a listener can subscribe to a pattern.
local function emit(id, seq, event, status, now_ms, more, aside)
  local document = '{"id":"' .. id .. '","seq":' .. seq .. ',"event":"' .. event .. '","status":"' .. status
    .. '","at_ms":' .. now_ms .. more
  local entry = redis.call('XADD', KEY.events, 'MAXLEN', '~', KEY.events_maxlen, '*', 'e', document .. '}')
  redis.call('PUBLISH', KEY.channel .. id, document .. ',"stream":"' .. entry .. (aside and '"' .. aside .. '}' or '"}'))
  if webhooks_wanted == nil then webhooks_wanted = redis.call('EXISTS', KEY.webhooks_wanted) == 1 end
  if webhooks_wanted then tell_webhooks(id, event, document .. '}') end
end

-- Wakes up to `count` idle workers of a queue: as many as it has tasks, because a worker that was woken for an earlier
-- task may have taken another one. The number of rings is capped, so that a queue without workers costs no more.
local function ring(queue, count)
  local bell = KEY.doorbell .. queue
  for _ = redis.call('LLEN', bell) + 1, math.min(KEY.doorbell_cap, count) do
    redis.call('RPUSH', bell, '1')
  end
end

-- Puts a task that is ready into its queue.
local function enqueue(id, queue, front)
  redis.call('SADD', KEY.queues, KEY.queue .. queue)
  ring(queue, redis.call(front and 'LPUSH' or 'RPUSH', KEY.queue .. queue, id))
end

-- A Redis whose memory is full refuses what may need more of it (HSET, ZADD, XADD, RPUSH), but in a script only until
-- its first write. So what must not wait for memory begins with a write that is never refused, if only with this one.
local function pass_when_full()
  redis.call('DEL', KEY.nothing)
end

-- Forgets the attempt that ran or was running: its lease, and what the worker is shown to run. Before every other
-- write: it needs no memory, so a Redis whose memory is full takes the rest as well (see `pass_when_full`).
local function drop_attempt(id, attempt_id, queue, worker)
  local member = id .. ':' .. attempt_id
  redis.call('ZREM', KEY.wip .. queue, member)
  redis.call('DEL', KEY.execution .. member)
  redis.call('SREM', KEY.worker .. worker .. ':executions', member)
end

-- For a task that others depend on: keeps the set `needed`, and the record if the task is done, from expiring by itself
-- while they may read its result. `purge` removes the record when its time has come and no task needs it.
local function keep_for_children(id, is_done)
  local ttl_s = redis.call('TTL', KEY.job .. id)
  redis.call('EXPIRE', KEY.needed .. id, math.max(ttl_s, KEY.held_most_s))
  if is_done and ttl_s >= 0 and ttl_s < KEY.held_most_s / 2 then -- not again for each child
    redis.call('EXPIRE', KEY.job .. id, KEY.held_most_s)
    -- A plain RQ worker stores results here, with the expiry of the record.
    if redis.call('TTL', KEY.results .. id) >= 0 then redis.call('EXPIRE', KEY.results .. id, KEY.held_most_s) end
  end
end

-- Enters an ended task into the registry of its outcome for `ttl_s` seconds, at least so long that a repeated
-- submission is known by it (negative: for ever). Purge removes it then. The key's own expiry a minute later is for the
-- case that no worker pool lives; it is longer for a task that others depend on. The secrets and the log stay no longer
-- than the record; the secrets stay that long for a retry by hand. Returns true when other tasks wait for it.
local function retain(id, registry, ttl_s, now_ms, has_secrets, has_log)
  if ttl_s < 0 then
    redis.call('ZADD', registry, '+inf', id)
    if has_log then redis.call('PERSIST', KEY.log .. id) end
  else
    ttl_s = math.max(ttl_s, KEY.least_ttl_s)
    redis.call('ZADD', registry, string.format('%.3f', now_ms / 1000 + ttl_s), id)
    ttl_s = ttl_s + KEY.expiry_slack_s
    redis.call('EXPIRE', KEY.job .. id, ttl_s)
    if has_secrets and redis.call('TTL', KEY.secrets .. id) > ttl_s then redis.call('EXPIRE', KEY.secrets .. id, ttl_s) end
    if has_log then redis.call('EXPIRE', KEY.log .. id, ttl_s) end
  end
  if redis.call('EXISTS', KEY.dependents .. id, KEY.needed .. id) == 0 then return false end
  keep_for_children(id, string.find(registry, KEY.finished, 1, true) == 1)
  if redis.call('EXISTS', KEY.dependents .. id) == 0 then return false end
  redis.call('SADD', KEY.outbox, id)
  return true
end

-- Appends an entry to a stream of the audit, after all checks; '' or nil: no entry.
local function audit(stream, entry)
  if entry and entry ~= '' then redis.call('XADD', stream, 'MAXLEN', '~', KEY.audit_maxlen, '*', 'e', entry) end
end

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

  -- Lines with one more, the last ones.
  local function with_line(lines, line)
    if not lines then return line end
    local _, breaks = string.gsub(lines, '\n', '')
    if breaks + 2 > KEY.history_cap then lines = string.sub(lines, string.find(lines, '\n', 1, true) + 1) end
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

  -- Writes the type of a task that another program stored.
  local function set_type(id, type)
    redis.call('HSET', KEY.job .. id, 'type', type)
    redis.call('ZADD', KEY.by_type .. type, 0, id)
    redis.call('SADD', KEY.types_used, type)
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

  -- Cancels a task that hasn't started: record, registry, event. `f` has these fields of its record by name: origin,
  -- seq, failure_ttl, secret_ttl, log. The caller takes it out of its queue. Returns true when other tasks wait for it.
  local function cancel_task(id, f, reason, error, more, now_ms, stamp)
    local seq = tonumber(f.seq or 0) + 1
    redis.call('ZREM', KEY.scheduled .. f.origin, id)
    redis.call('ZREM', KEY.deferred .. f.origin, id)
    redis.call('ZREM', KEY.expiring, id)
    redis.call('HSET', KEY.job .. id, 'status', RQ.canceled, 'ended_at', stamp, 'seq', seq, 'reason', reason, 'error', error)
    local has_children = retain(id, KEY.canceled .. f.origin, tonumber(f.failure_ttl) or KEY.failure_ttl_s, now_ms,
      f.secret_ttl, f.log)
    emit(id, seq, EVENT.canceled, STATUS.canceled, now_ms, ',"reason":"' .. reason .. '"' .. more)
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
    if redis.call('EXISTS', index .. name) == 0 then redis.call('SREM', names, name) end
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
    cancel_task = cancel_task,
    add_result = add_result,
    leave_index = leave_index,
  }
end
