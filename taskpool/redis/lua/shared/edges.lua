-- Edges: what tasks depend on.
--
-- An edge is {ref, on}: how something has to end. `ref` is the id of a task, or "{workflow}:{map}" for a map of a
-- workflow, or "{workflow}:" for all of it (the id of a task has no colon). `on` is success (it is done), failure (it
-- ended, but not done) or any (it ended in whatever way; also: its record is gone).
--
-- Edges of success between tasks are in `dependency_ids` of the record, where RQ has them, and in the parent's set
-- `dependents`. All others are in `edges` of the record, and in the parent's set `followers`, as "on:id". `pending` of
-- the record counts those of both kinds that are not satisfied. So a pool of the release before, which doesn't know the
-- others, releases no task too early. It doesn't know confirmations either: all edges of a task with `confirm` are others.

-- The functions below, by name. They are made only when a script asks for them.
local function edges()
  local function decoded(list)
    local is_json, found = pcall(cjson.decode, list or '')
    return is_json and type(found) == 'table' and found or {}
  end

  -- The edges of a task by two fields of its record. What isn't an edge is skipped: another program may have written
  -- anything.
  local function list_of(dependency_ids, more)
    local list = {}
    for _, id in ipairs(decoded(dependency_ids)) do
      if type(id) == 'string' then list[#list + 1] = {ref = id, on = 'success', is_plain = true} end
    end
    for _, edge in ipairs(decoded(more)) do
      if type(edge) == 'table' and type(edge.ref) == 'string' and type(edge.on) == 'string' then list[#list + 1] = edge end
    end
    return list
  end

  -- How a group of tasks has ended, as `outcome_of` says it.
  local function outcome_of_group(ref)
    local workflow, map = string.match(ref, '^([^:]*):(.*)$')
    local key = KEY.workflow .. workflow
    local status = redis.call('HGET', key, 'status')
    if not status then return 'gone' end
    local has_ended = status == STATUS.done or status == STATUS.failed or status == STATUS.stopped
    if map == '' then return has_ended and (status == STATUS.done and STATUS.done or STATUS.failed) or nil, status end

    local prefix = 'map:' .. map .. ':'
    local n = redis.call('HMGET', key, prefix .. 'total', prefix .. 'ended', prefix .. 'n:' .. STATUS.done)
    local total, ended, done = tonumber(n[1]), tonumber(n[2]) or 0, tonumber(n[3]) or 0
    if not total then return has_ended and 'gone' or nil end -- a task of the workflow has still to add the map
    if ended < total then return nil end
    return done == total and STATUS.done or STATUS.failed, done == total and STATUS.done or STATUS.failed
  end

  -- How something has ended: 'done' | 'failed' (in another way) | 'not_needed' (canceled, because it could no longer be
  -- needed) | 'gone' (it was removed, or has expired) | nil (it hasn't). And the word of its status, if it has one.
  local function outcome_of(ref)
    if string.find(ref, ':', 1, true) then return outcome_of_group(ref) end
    local f = redis.call('HMGET', KEY.job .. ref, 'status', 'reason')
    if not f[1] then return 'gone' end
    if not RQ_SET.terminal[f[1]] then return nil, f[1] end
    if f[1] == RQ.done then return STATUS.done, f[1] end
    return f[1] == RQ.canceled and f[2] == 'not_needed' and 'not_needed' or STATUS.failed, f[1]
  end

  -- What an outcome is for an edge: 'wait' | 'ok' | why the task is canceled.
  local function verdict(on, outcome)
    if not outcome then return 'wait' end
    if on == 'any' then return 'ok' end
    if outcome == 'gone' then return 'dependency_failed' end
    if outcome == 'not_needed' then return 'not_needed' end
    if on == 'failure' then return outcome == STATUS.done and 'not_needed' or 'ok' end
    return outcome == STATUS.done and 'ok' or 'dependency_failed'
  end

  -- Looks at the parents of a task: how many edges aren't satisfied, and the first edge that can't be any more (nil:
  -- none). The edges are noted with their outcomes for `enter`.
  local function weigh(list)
    local pending, broken = 0, nil
    for _, edge in ipairs(list) do
      edge.outcome, edge.word = outcome_of(edge.ref)
      edge.verdict = verdict(edge.on, edge.outcome)
      if edge.verdict ~= 'ok' then pending = pending + 1 end
      if edge.verdict ~= 'ok' and edge.verdict ~= 'wait' then broken = broken or edge end
    end
    return pending, broken
  end

  -- The parent's set of tasks that wait for it, and how one is entered there.
  local function place_of(edge, id)
    if edge.is_plain then return KEY.dependents .. edge.ref, id end
    return KEY.followers .. edge.ref, edge.on .. ':' .. id
  end

  -- Whether a task belongs to the workflow of a group: then it is removed with it, and needs nothing kept.
  local function is_inside(ref, id)
    return string.find(ref, ':', 1, true) ~= nil and string.sub(ref, 1, 16) == string.sub(id, 1, 16)
  end

  -- Notes with the parents of a task, weighed before, that it waits for them, or may still read how they have ended. Not
  -- with the one that it was canceled for.
  local function enter(id, list, broken, now_ms)
    for _, edge in ipairs(list) do
      if edge.verdict == 'wait' and not broken then
        local place, member = place_of(edge, id)
        redis.call('SADD', place, member)
      elseif edge.outcome ~= 'gone' and edge ~= broken and not is_inside(edge.ref, id) then
        redis.call('SADD', KEY.needed .. edge.ref, id)
        if edge.outcome then hold(edge.ref, now_ms) end
      end
    end
  end

  -- What a ref names, for people.
  local function shown(ref)
    local workflow, map = string.match(ref, '^([^:]*):(.*)$')
    if not workflow then return 'the task ' .. ref end
    return (map == '' and '' or 'the map ' .. map .. ' of ') .. 'the workflow ' .. workflow
  end

  -- The error of a task that is canceled because of an edge that was weighed.
  local function error_of(edge)
    local parent = shown(edge.ref)
    if edge.outcome == 'gone' then
      return string.format('canceled: %s it depends on is gone (removed or expired), so its outcome is unknown', parent)
    elseif edge.outcome == 'not_needed' then
      return string.format('canceled: it is not needed, as %s it depends on was not', parent)
    elseif edge.verdict == 'not_needed' then
      return string.format('canceled: it is not needed, because %s is done', parent)
    end
    return string.format('canceled: %s it depends on did not end well (%s)', parent, edge.word)
  end

  -- Notes that a task was canceled because of an edge: when that parent is retried, the task is revived. (A parent that
  -- is done or gone can't be.)
  local function note_cause(id, edge)
    redis.call('HSET', KEY.job .. id, 'canceled_by', edge.ref)
    if edge.outcome == STATUS.done or edge.outcome == 'gone' then return end
    local key = KEY.revivable .. edge.ref
    redis.call('SADD', key, id)
    local ttl_s = redis.call('TTL', KEY.job .. edge.ref) -- if no pool lives that purges the parent
    if ttl_s >= 0 then redis.call('EXPIRE', key, ttl_s) else redis.call('PERSIST', key) end
  end

  return {
    list_of = list_of,
    outcome_of = outcome_of,
    verdict = verdict,
    weigh = weigh,
    place_of = place_of,
    is_inside = is_inside,
    enter = enter,
    shown = shown,
    error_of = error_of,
    note_cause = note_cause,
  }
end
