-- What every transition shares, put in front of each script by scripts.py: the clock, the event, the queue's door.
-- Before a script is loaded, each constant of keys.py named after `KEY.` is put in its place.

-- Redis's time: milliseconds since 1970, and RQ's text of it ("2026-01-31T12:00:00.000Z").
-- The calendar is Howard Hinnant's civil_from_days (public domain), because Redis offers no os.date.
local function clock()
  local time = redis.call('TIME')
  local seconds, millis = tonumber(time[1]), math.floor(tonumber(time[2]) / 1000)
  local days, rest = math.floor(seconds / 86400), seconds % 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local stamp = string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month,
    doy - math.floor((153 * mp + 2) / 5) + 1, math.floor(rest / 3600), math.floor(rest % 3600 / 60), rest % 60, millis)
  return seconds * 1000 + millis, stamp
end

-- One event: kept in the capped stream, published on the task's channel. `more` is '' or JSON members, ',"k":v'.
local function emit(id, seq, event, status, now_ms, more)
  local document = string.format('{"id":"%s","seq":%d,"event":"%s","status":"%s","at_ms":%.0f%s}',
    id, seq, event, status, now_ms, more)
  redis.call('XADD', KEY.events, 'MAXLEN', '~', KEY.events_maxlen, '*', 'e', document)
  redis.call('PUBLISH', KEY.channel .. id, document)
end

-- Wakes up to `count` idle workers of a queue: as many as there are tasks in it, because a ring of an earlier task may
-- have been heard for another. Capped: a bell nobody hears costs nothing more.
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

-- Forgets the attempt that ran or was running: its lease, and what the worker is shown to run.
local function drop_attempt(id, attempt_id, queue, worker)
  local member = id .. ':' .. attempt_id
  redis.call('ZREM', KEY.wip .. queue, member)
  redis.call('DEL', KEY.execution .. member)
  redis.call('SREM', KEY.worker .. worker .. ':executions', member)
end

-- Enters an ended task into the registry of its outcome for `ttl_s` seconds (negative: for ever); purge removes it
-- then, and the key's own expiry a minute later is for the case that no worker pool lives. True: dependents wait.
local function retain(id, registry, ttl_s, now_ms)
  if ttl_s < 0 then
    redis.call('ZADD', registry, '+inf', id)
  else
    ttl_s = math.max(ttl_s, 1)
    redis.call('ZADD', registry, string.format('%.3f', now_ms / 1000 + ttl_s), id)
    redis.call('EXPIRE', KEY.job .. id, ttl_s + 60)
  end
  if redis.call('EXISTS', KEY.dependents .. id) == 1 then
    redis.call('SADD', KEY.outbox, id)
    return true
  end
  return false
end
