-- Schedules: whether one still expects an occurrence, and what is noted of it. Part of the scripts that need it.
--
-- An occurrence is {id (of the schedule), incarnation, revision, occurrence_ms (its nominal time), expected_ms (the
-- first occurrence that the schedule waits for: those from there until `occurrence_ms` were missed), next_ms (the one
-- after it; not there: there is none), due_ms (when that one is due, later by its jitter)}. All are texts. One that a
-- person asks for has no `expected_ms`: the schedule goes on as if it hadn't been.
local function schedules()
  -- The fields of a schedule, by name, if it still expects the occurrence. nil: it was changed, paused, removed or added
  -- anew, or another pool was quicker.
  local function expecting(o)
    local key = KEY.schedule .. o.id
    local f = redis.call('HMGET', key, 'incarnation', 'revision', 'next_ms', 'paused_ms', 'last_ms', 'last_task', 'behind')
    if f[1] ~= o.incarnation or f[2] ~= o.revision then return nil end
    if o.expected_ms then
      if f[3] ~= o.expected_ms or f[4] then return nil end
      if f[5] and tonumber(f[5]) >= tonumber(o.occurrence_ms) then return nil end
    end
    return {last_task = f[6], behind = f[7]}
  end

  -- The task, if it exists and hasn't ended.
  local function unended(id)
    local status = id and redis.call('HGET', KEY.job .. id, 'status')
    return status and not RQ_SET.terminal[status] and id or nil
  end

  local function note(o, outcome, more, now_ms)
    local list = KEY.occurrences .. o.id
    redis.call('LPUSH', list, '{"occurrence_ms":' .. o.occurrence_ms .. ',"at_ms":' .. now_ms .. ',"outcome":"' .. outcome
      .. '"' .. more .. '}')
    redis.call('LTRIM', list, 0, KEY.occurrences_kept - 1)
  end

  -- Notes what became of an occurrence, and has the schedule wait for the next one. `task`: what was submitted for it
  -- ('' = nothing), `behind`: the run before, if that hasn't ended; `reason`: why nothing was.
  local function settle(o, outcome, task, behind, reason, now_ms)
    local key = KEY.schedule .. o.id
    if task ~= '' then
      redis.call('HSET', key, 'last_task', task, 'behind', behind)
    end
    if o.expected_ms then
      redis.call('HSET', key, 'last_ms', o.occurrence_ms, 'next_ms', o.next_ms or '')
      redis.call('HDEL', key, 'retry_ms')
      local due_ms = o.due_ms or now_ms + KEY.schedule_kept_s * 1000
      redis.call('ZADD', KEY.schedules_due, string.format('%.3f', due_ms / 1000), o.id)
      if o.expected_ms ~= o.occurrence_ms then
        local first = {id = o.id, occurrence_ms = o.expected_ms}
        note(first, 'missed', ',"until_ms":' .. o.occurrence_ms, now_ms)
      end
    end
    local more = task == '' and '' or ',"task":"' .. task .. '"'
    if reason ~= '' then more = more .. ',"reason":' .. cjson.encode(reason) end
    note(o, outcome, more, now_ms)
  end

  return {expecting = expecting, unended = unended, settle = settle}
end
