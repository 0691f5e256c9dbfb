-- Unique keys. A hash has, for each key, the task that took it last. The task's record says whether it still holds the
-- key (`unique`: how long, a blank, the key). So no script has to release a key when a task starts or ends: an entry
-- that no longer counts does no harm until `sweep_unique` drops it.

-- The functions below, by name. They are made only when a script asks for them: most tasks have no unique key.
local function unique_keys()
  -- The task that took a key last, and until when (nil: as its record says). With '+' as the third value, a workflow
  -- took it for a task that is still to be stored.
  local function entry_of(name)
    local entry = redis.call('HGET', KEY.unique, name)
    if not entry then return nil end
    local id, until_ms, coming = string.match(entry, '^(%S+) ?(%d*)(%+?)$')
    return id, tonumber(until_ms), coming
  end

  -- The task that holds a key now, and RQ's word of its status; nil: no task does.
  local function holder_of(name, now_ms)
    local id, until_ms, coming = entry_of(name)
    if not id then return nil end
    local f = redis.call('HMGET', KEY.job .. id, 'status', 'unique', 'started_at')
    local status, how = f[1], string.match(f[2] or '', '^(%a+)')
    if not status and coming == '+' and until_ms > now_ms then return id, RQ.queued end
    if not status or status == RQ.canceled or not how or string.sub(f[2], -#name - 1) ~= ' ' .. name then return nil end
    if how == 'time' then return until_ms and until_ms > now_ms and id or nil, status end
    if RQ_SET.terminal[status] then return nil end
    if how == 'start' and (status == RQ.in_progress or (f[3] or '') ~= '') then return nil end
    return id, status
  end

  -- Notes that a task has a key, until a time (nil: as its record says).
  local function hold(name, id, until_ms)
    redis.call('HSET', KEY.unique, name, until_ms and string.format('%s %.0f', id, until_ms) or id)
  end

  -- The same for a task of a workflow that is stored later.
  local function hold_for(name, id, now_ms)
    redis.call('HSET', KEY.unique, name, string.format('%s %.0f+', id, now_ms + KEY.staged_ttl_s * 1000))
  end

  -- Of a task that had ended and that another program queued again: the task that holds its unique key meanwhile. Else
  -- nil, and the task holds it again. A later attempt of the same life isn't meant: another task may hold the key then.
  local function rival_of(id, now_ms)
    local f = redis.call('HMGET', KEY.job .. id, 'unique', 'ended_at', 'reason', 'result', 'rq_failure')
    local name = f[1] and string.match(f[1], ' (%S+)$')
    if not name or entry_of(name) == id then return nil end
    -- RQ's tools write an empty `ended_at`, also where they only move a task whose time has come.
    if (f[2] or '') == '' and not (f[3] or f[4] or f[5]) then return nil end
    local holder = holder_of(name, now_ms)
    if holder and holder ~= id then return holder end
    if string.sub(f[1], 1, 4) ~= 'time' then hold(name, id) end
  end

  return {entry_of = entry_of, holder_of = holder_of, hold = hold, hold_for = hold_for, rival_of = rival_of}
end
