-- Releases the tasks that depend on something that has ended: a task, a map or a workflow (see edges.lua). Those for which
-- it was the last are queued. Those that can't run any more, or aren't needed any more, are canceled, and so are the ones
-- that depend on them, down to the limit of this call. What is left is in the outbox, so a caller that dies in between
-- loses nothing.
--
-- If it hasn't ended, it was retried: then the tasks that were canceled because of it are revived, and the ones that were
-- canceled because of those. What they wait for is found out anew from all that they depend on. A task that another of
-- its parents keeps from running stays canceled, and is revived with that one.
--
-- A task that still exists stays in the set `needed` of its parent: it may read the outcome later.
--
-- ARGV[1]  ref of what has ended or was retried
-- ARGV[2]  the most tasks that this call releases, cancels or revives (of those, their edges are counted)
-- Returns  the refs that still have something to do: call again with each

local move, edge, gate = moves(), edges(), gates()
local limit = tonumber(ARGV[2])
local now_ms, stamp = clock()
local refs, at = {ARGV[1]}, 1

local function cancel(id, f, broken)
  local more = string.format(',"dependency":"%s"', broken.ref)
  edge.note_cause(id, broken) -- first: it decides how a workflow counts the task
  local has_children = move.cancel_task(id, f, broken.verdict, edge.error_of(broken), more, now_ms, stamp)
  if has_children then table.insert(refs, id) end
end

local function count_down(id, f)
  if redis.call('HINCRBY', KEY.job .. id, 'pending', -1) > 0 then return end
  redis.call('ZREM', KEY.deferred .. f.origin, id)
  gate.pass(id, f, '', now_ms, stamp)
end

-- Carries out what an outcome means for one task that waits for it; whether the task may still read it.
local function settle(id, ended)
  local f = move.record(id, 'status', 'failure_ttl', unpack(gate.FIELDS))
  if not f.status or f.status == RQ.done then return false end
  if f.status ~= RQ.waiting or f.asked_ms then return true end
  if ended.verdict == 'ok' then
    count_down(id, f)
    return true
  end
  cancel(id, f, ended)
  return false
end

local function release(ref, outcome, word)
  local needing = {}
  local function settle_all(on, ids)
    local ended = {ref = ref, on = on, outcome = outcome, word = word, verdict = edge.verdict(on, outcome)}
    limit = limit - #ids
    for _, id in ipairs(ids) do
      if settle(id, ended) and not edge.is_inside(ref, id) then table.insert(needing, id) end
    end
  end
  settle_all('success', redis.call('SPOP', KEY.dependents .. ref, limit))
  local by_kind = {success = {}, failure = {}, any = {}}
  for _, member in ipairs(limit > 0 and redis.call('SPOP', KEY.followers .. ref, limit) or {}) do
    local on, id = string.match(member, '^(%a+):(.+)$')
    if by_kind[on] then table.insert(by_kind[on], id) end
  end
  for on, ids in pairs(by_kind) do settle_all(on, ids) end
  if outcome ~= 'gone' and word and #needing > 0 then
    redis.call('SADD', KEY.needed .. ref, unpack(needing))
    hold(ref, now_ms)
  end
end

-- Revives a task that was canceled because of `ref`.
local function revive(id, ref)
  local life = lives()
  local f = life.record_of(id)
  if f.status ~= RQ.canceled or f.canceled_by ~= ref then return end
  local list = edge.list_of(f.dependency_ids, f.edges)
  limit = limit - #list
  local pending, broken = edge.weigh(list)
  if broken then
    redis.call('HSET', KEY.job .. id, 'error', edge.error_of(broken))
    if broken.ref ~= ref then edge.note_cause(id, broken) end
    return
  end
  local obstacle = life.obstacle(id, f, now_ms)
  if obstacle then
    local why = obstacle == 'secrets' and 'its secret fields are no longer kept'
      or string.format('the task %s holds its unique key', string.match(obstacle, '^unique (.*)$'))
    local error = string.format('canceled: %s was retried, but not this task: %s', edge.shown(ref), why)
    redis.call('HSET', KEY.job .. id, 'error', error)
    return
  end
  life.begin(id, f, list, pending, now_ms, stamp)
  if redis.call('EXISTS', KEY.revivable .. id) == 0 then return end
  redis.call('SADD', KEY.outbox, id)
  table.insert(refs, id)
end

-- Whether a task without a record is entered among the finished: RQ ran it and let it expire. Only those that ended
-- well are there.
local function is_among_finished(id)
  for _, queue in ipairs(redis.call('SMEMBERS', KEY.queues)) do
    if redis.call('ZSCORE', KEY.finished .. string.sub(queue, #KEY.queue + 1), id) then return true end
  end
  return false
end

-- Tasks that were canceled because of something that was retried, and may be done by now. The oldest come first: a task is
-- younger than those that it depends on, and must find them revived.
local function revive_all(ref)
  while limit > 0 do
    local ids = redis.call('SPOP', KEY.revivable .. ref, limit)
    if #ids == 0 then return end
    table.sort(ids)
    for n, id in ipairs(ids) do
      if limit <= 0 then
        redis.call('SADD', KEY.revivable .. ref, unpack(ids, n))
        return
      end
      limit = limit - 1
      revive(id, ref)
    end
  end
end

-- The groups of a workflow that a task's end may have ended are released with it.
local function add_groups(id)
  local f = redis.call('HMGET', KEY.job .. id, 'workflow', 'node')
  for _, name in ipairs(f[1] and {f[2] or '', ''} or {}) do
    local ref = f[1] .. ':' .. name
    if redis.call('SISMEMBER', KEY.outbox, ref) == 1 then table.insert(refs, ref) end
  end
end

while at <= #refs and limit > 0 do
  local ref = refs[at]
  local outcome, word = edge.outcome_of(ref)
  if outcome == 'gone' and is_among_finished(ref) then outcome = STATUS.done end
  if not outcome or outcome == STATUS.done then revive_all(ref) end
  if outcome and limit > 0 then release(ref, outcome, word) end
  local left = outcome and redis.call('EXISTS', KEY.dependents .. ref, KEY.followers .. ref) or 0
  if not outcome or outcome == STATUS.done then left = left + redis.call('EXISTS', KEY.revivable .. ref) end
  if left > 0 then break end
  redis.call('SREM', KEY.outbox, ref)
  add_groups(ref)
  at = at + 1
end
return {unpack(refs, at)}
