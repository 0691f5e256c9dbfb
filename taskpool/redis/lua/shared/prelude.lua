-- What most scripts share: the clock, events, doorbells, the end of an attempt.
--
-- linker.py puts into each script just the functions of this folder that it names, and replaces these names by constants of
-- Python:
--   KEY.<name>      a key, a time or a number of keys.py
--   TEXT.<name>     such a number as a text, for a command: Redis takes long to turn a number of Lua into a text
--   STATUS.<name>   the word of a status that events show; `name` is that of types.TaskStatus
--   RQ.<name>       RQ's word of that status, which the record holds
--   EVENT.<name>    the event of a move to that status
--   RQ_SET.<name>   a set of RQ's words, {word = true}; for its names see keys.RQ_SET
--   RQ_MAP.<name>   a table by RQ's words, {word = text}; see keys.RQ_MAP

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

-- Whether any endpoint or callback wants events. A script asks once; nil before.
local webhooks_wanted

-- Whether one of these keys exists, with the answer about webhooks in the same command: for most tasks it is none of all.
local function any_exists(...)
  if webhooks_wanted ~= nil then return redis.call('EXISTS', ...) > 0 end
  webhooks_wanted = false
  local found = redis.call('EXISTS', KEY.webhooks_wanted, ...)
  if found == 0 then return false end
  webhooks_wanted = redis.call('EXISTS', KEY.webhooks_wanted) == 1
  return found > (webhooks_wanted and 1 or 0)
end

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
  local key = (string.find(event, '^workflow_') and KEY.workflow or KEY.job) .. id
  local f = redis.call('HMGET', key, 'type', 'origin', 'tags', 'attempt', 'max_attempts', 'created_at',
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
  local entry = redis.call('XADD', KEY.events, 'MAXLEN', '~', TEXT.events_maxlen, '*', 'e', document .. '}')
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

-- Appends an entry to a stream of the audit, after all checks; '' or nil: no entry.
local function audit(stream, entry)
  if entry and entry ~= '' then redis.call('XADD', stream, 'MAXLEN', '~', TEXT.audit_maxlen, '*', 'e', entry) end
end

-- A Redis whose memory is full refuses what may need more of it (HSET, ZADD, XADD, RPUSH), but in a script only until
-- its first write. So what must not wait for memory begins with a write that is never refused, if only with this one.
local function pass_when_full()
  redis.call('DEL', KEY.nothing)
end

-- Whether a job's data names Taskpool's entry point as it is stored by Taskpool itself: plain JSON without blanks.
local function is_stored_by_us(data)
  return string.sub(data, 3, 2 + #KEY.entry_point) == KEY.entry_point
end

-- Forgets the attempt that ran or was running: its lease, and what the worker is shown to run. Before every other
-- write: it needs no memory, so a Redis whose memory is full takes the rest as well (see `pass_when_full`). `is_hidden`:
-- no attempt at this task has had a heartbeat, which shows it to RQ's tools.
local function drop_attempt(id, attempt_id, queue, worker, is_hidden)
  local member = id .. ':' .. attempt_id
  redis.call('ZREM', KEY.wip .. queue, member)
  redis.call('SREM', KEY.attempts .. worker, member)
  if is_hidden then return end
  redis.call('DEL', KEY.execution .. member)
  redis.call('SREM', KEY.worker .. worker .. ':executions', member)
end

-- Keeps the record of an ended task for the tasks that depend on it: it doesn't expire by itself any more. When its time
-- is over, `purge` looks whether one of them still needs it.
local function hold(id, now_ms)
  local ttl_s = redis.call('TTL', KEY.job .. id)
  if ttl_s < 0 then return end -- it has not ended, is held already, is kept for ever, or is gone
  redis.call('PERSIST', KEY.job .. id)
  redis.call('PERSIST', KEY.results .. id) -- a plain RQ worker stores results here, with the expiry of the record
  redis.call('ZADD', KEY.held, string.format('%.3f', now_ms / 1000 + ttl_s), id)
end

-- Keeps the log of an ended task as long as its record; negative: for ever.
local function keep_log(id, ttl_s)
  if ttl_s < 0 then
    redis.call('PERSIST', KEY.log .. id)
  else
    redis.call('EXPIRE', KEY.log .. id, ttl_s + KEY.expiry_slack_s)
  end
end

-- Whether other tasks wait for one that has ended. Its record is kept for them then.
local function is_waited_for(id, is_done, now_ms)
  local waiting, following, revivable = KEY.dependents .. id, KEY.followers .. id, KEY.revivable .. id
  if not any_exists(waiting, following, KEY.needed .. id, revivable) then return false end
  hold(id, now_ms)
  -- Those that were canceled because of it are revived also when it is done after another program queued it again.
  if redis.call('EXISTS', waiting, following, is_done and revivable or waiting) == 0 then return false end
  redis.call('SADD', KEY.outbox, id)
  return true
end

-- What only those get who listen now when a task is done with a small result: they needn't read the record.
local function result_aside(attempt, started_at, worker, result)
  if result == '' or #result > KEY.aside_bytes then return nil end
  return ',"attempt":' .. attempt .. ',"started_at":"' .. started_at .. '","worker":' .. cjson.encode(worker) .. ',"result":'
    .. result
end

-- Enters an ended task into the registry of its outcome for `ttl_s` seconds, at least so long that a repeated
-- submission is known by it (negative: for ever). Purge removes it then. The key's own expiry a minute later is for the
-- case that no worker pool lives; a task that others depend on has none. The secrets and the log stay no longer than the
-- record; the secrets stay that long for a retry by hand. A member of a workflow is kept as long as that. Returns true
-- when other tasks wait for it.
local function retain(id, registry, ttl_s, now_ms, has_secrets, has_log, workflow)
  if ttl_s < 0 or workflow and redis.call('EXISTS', KEY.workflow .. workflow) == 1 then
    redis.call('ZADD', registry, '+inf', id)
    if has_log then keep_log(id, -1) end
  else
    ttl_s = math.max(ttl_s, KEY.least_ttl_s)
    redis.call('ZADD', registry, string.format('%.3f', now_ms / 1000 + ttl_s), id)
    if has_log then keep_log(id, ttl_s) end
    ttl_s = ttl_s + KEY.expiry_slack_s
    redis.call('EXPIRE', KEY.job .. id, ttl_s)
    if has_secrets and redis.call('TTL', KEY.secrets .. id) > ttl_s then redis.call('EXPIRE', KEY.secrets .. id, ttl_s) end
  end
  return is_waited_for(id, string.find(registry, KEY.finished, 1, true) == 1, now_ms)
end
