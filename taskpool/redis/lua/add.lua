-- Adds tasks, all of them or none.
--
-- ARGV[1]   the call as JSON. Members that say nothing are left out.
--           kinds  what tasks have in common: {type, queue, failure_ttl_s, fields: names and values of the hash,
--                  alternating}
--           ids    the tasks' ids, where all are of the first kind and none has an option; else
--           tasks  for each task:
--                  id, kind (its place in `kinds`, from 1)
--                  front (true), run_ms (a time), delay_ms, expires_ms (both from now), tags, parents (ids), project,
--                  secrets (taken out of its payload), secret_ttl_s,
--                  callback_events (',done,failed,': the events that its callback gets), fields (of its hash, as in kinds)
--                  unique: {name, on_conflict (reject | return | replace), held_ms (as its record says without it),
--                  replaceable ({"types":{name:1},"queues":{name:1}}: what it may replace; without one of them, any)}
--           most   most tasks that a queue may hold of each kind (ready, scheduled, waiting for others)
--           audit  entries of the audit
--           once   {key, fingerprint of what is asked for, kept_ms}: the call is carried out once for this key
-- ARGV[2]   how many queues, tags, unique_keys and idempotency_keys a project may use, as JSON ('' = any number). Most calls
--           don't need it, so it is read only when it is needed.
-- ARGV[3+]  for each task: its `data`, its description
-- Needs     unique
-- Returns   {'ok', stamp, RQ's status of each task}. A task that is answered with another one, which holds its unique key
--           (on_conflict is return), has {id, status} of that one instead of a status
--           {'exists', stamp, the same of each task, or 'gone'}  a task with one of the ids exists: this very call was
--           carried out already
--           {'replayed', what is kept for the key}  an earlier call had the same idempotency key
--           {'conflict', index, id of the holder, its status}  another task holds its unique key
--           {'unreplaceable', index}  a task that it may not replace holds its unique key
--           {'unknown_dependency', id}  this parent doesn't exist
--           {'full', stamp, queue, how many it holds, how many would come, since when its head is queued (or '')}
--           {'capped', which cap, project ('' = none), how many it allows}

local call = cjson.decode(ARGV[1])
local kinds, most = call.kinds, call.most or 0
local now_ms, stamp = clock()

-- The tasks of most calls have no option, are of one kind and new, and their queue is known and has room for them. What
-- they share is done once; without this, a task costs Redis a third more.
local function add_plain(ids, kind)
  local queue, fields, n = KEY.queue .. kind.queue, kind.fields, #kind.fields
  if most > 0 and redis.call('LLEN', queue) + #ids > most then return nil end
  if redis.call('SISMEMBER', KEY.queues, queue) == 0 then return nil end
  local keys, scored, reply = {}, {}, {'ok', stamp}
  for index, id in ipairs(ids) do keys[index] = KEY.job .. id end
  if redis.call('EXISTS', unpack(keys)) > 0 then return nil end

  fields[n + 1], fields[n + 3] = 'data', 'description'
  local more = ',"type":"' .. kind.type .. '","queue":"' .. kind.queue .. '"'
  for index, id in ipairs(ids) do
    fields[n + 2], fields[n + 4] = ARGV[2 * index + 1], ARGV[2 * index + 2]
    redis.call('HSET', keys[index], 'status', RQ.queued, 'created_at', stamp, 'seq', '1', 'enqueued_at', stamp,
      unpack(fields))
    emit(id, 1, EVENT.queued, STATUS.queued, now_ms, more)
    scored[2 * index - 1], scored[2 * index], reply[index + 2] = '0', id, RQ.queued
  end
  redis.call('ZADD', KEY.by_type .. kind.type, unpack(scored))
  redis.call('SADD', KEY.types_used, kind.type)
  ring(kind.queue, redis.call('RPUSH', queue, unpack(ids)))
  for _, entry in ipairs(call.audit or {}) do audit(KEY.audit_submitted, entry) end
  return reply
end

local added = call.ids and not call.once and add_plain(call.ids, kinds[1])
if added then return added end

local move = moves()
local tasks, once = call.tasks or {}, call.once
local caps = ARGV[2] ~= '' and cjson.decode(ARGV[2]) or {}
for index, id in ipairs(call.ids or {}) do tasks[index] = {id = id, kind = 1} end
local keys, uniques = {}, nil
for index, task in ipairs(tasks) do
  keys[index] = KEY.job .. task.id
  task.kind = kinds[task.kind]
  if task.unique and not uniques then uniques = unique_keys() end
end

-- A call that is sent again, because the first answer was lost, gets an answer again, even if parents are gone. The
-- first task of a batch may have run and been purged since, so each id counts.
local function earlier_answer()
  local kept = once and redis.call('GET', KEY.once .. once.key)
  if kept then return {'replayed', kept} end
  if redis.call('EXISTS', unpack(keys)) == 0 then return nil end
  local reply = {'exists', ''}
  for index, task in ipairs(tasks) do
    local f = redis.call('HMGET', keys[index], 'status', 'created_at')
    local holder = not f[1] and task.unique and uniques.entry_of(task.unique.name)
    reply[2] = f[2] or reply[2]
    reply[index + 2] = holder and {holder, redis.call('HGET', KEY.job .. holder, 'status') or 'gone'} or f[1] or 'gone'
  end
  return reply
end

-- Every parent must exist; it may stand earlier in the same call. Another project's tasks don't exist for a task.
local function missing_parent()
  local own = {}
  for _, task in ipairs(tasks) do
    for _, parent in ipairs(task.parents or {}) do
      local f = own[parent] or redis.call('HMGET', KEY.job .. parent, 'status', 'project')
      if f ~= true and not (f[1] and (not task.project or f[2] == task.project)) then
        return {'unknown_dependency', parent}
      end
    end
    own[task.id] = true
  end
end

local existing, replaced = {}, {} -- by the index of the task: {holder, its status}; {holder}

local function is_replaceable(id, bounds)
  if not bounds then return true end
  local f = redis.call('HMGET', KEY.job .. id, 'type', 'origin')
  return (not bounds.types or bounds.types[f[1]]) and (not bounds.queues or bounds.queues[f[2]])
end

local function held_key()
  for index, task in ipairs(tasks) do
    local unique = task.unique
    local holder, status
    if unique then holder, status = uniques.holder_of(unique.name, now_ms) end
    if holder and unique.on_conflict == 'return' then
      existing[index] = {holder, status}
    elseif holder and unique.on_conflict == 'replace' and not is_replaceable(holder, unique.replaceable) then
      return {'unreplaceable', index}
    elseif holder and unique.on_conflict == 'replace' and RQ_SET.cancelable[status] then
      replaced[index] = holder
    elseif holder then
      return {'conflict', index, holder, status}
    end
  end
end

-- A task that takes another's place needs no room.
local function full_queue()
  local coming = {}
  for index, task in ipairs(most > 0 and tasks or {}) do
    if not (existing[index] or replaced[index]) then
      local kind = task.parents and KEY.deferred or (task.run_ms or task.delay_ms) and KEY.scheduled or KEY.queue
      local place = kind .. task.kind.queue
      coming[place] = coming[place] or {kind, task.kind.queue, 0}
      coming[place][3] = coming[place][3] + 1
    end
  end
  for place, what in pairs(coming) do
    local kind, queue, count = what[1], what[2], what[3]
    local held = redis.call(kind == KEY.queue and 'LLEN' or 'ZCARD', place)
    if held + count > most then
      local head = kind == KEY.queue and redis.call('LINDEX', place, 0)
      return {'full', stamp, queue, held, count, head and redis.call('HGET', KEY.job .. head, 'enqueued_at') or ''}
    end
  end
end

local INDEX = {queues = KEY.queues, tags = KEY.tags}
local entering, listing = {}, {} -- new members of the indexes; by the key of a project's list of names: see `look_at`

local function most_of(kind, project)
  return (caps[kind] or 0) * (project == '' and KEY.without_project or 1)
end

local function is_known(kind, name)
  if kind == 'unique_keys' then return redis.call('HEXISTS', KEY.unique, name) == 1 end
  return redis.call('SISMEMBER', INDEX[kind], name) == 1
end

local looked_at = {}
local function look_at(kind, name, project)
  if looked_at[kind .. name] then return end
  looked_at[kind .. name] = true
  if INDEX[kind] then
    if is_known(kind, name) then return end
    table.insert(entering, {INDEX[kind], name})
  end
  local list, most_used = KEY.used .. kind .. ':' .. project, most_of(kind, project)
  if most_used == 0 then return end
  local is_listed = redis.call('SISMEMBER', list, name) == 1
  if is_listed and not INDEX[kind] then return end
  local its = listing[list] or {kind = kind, project = project, most = most_used, names = {}, gone = {}, more = 0}
  listing[list] = its
  table.insert(its.names, name)
  if not is_listed then its.more = its.more + 1 end
end

-- Whether projects may use the names that are new. When a project has reached a cap, names that are gone are dropped
-- from its list: some with each call, because there may be many.
local function reached_cap()
  for index, task in ipairs(tasks) do
    if not existing[index] then
      look_at('queues', KEY.queue .. task.kind.queue, task.project or '')
      for _, tag in ipairs(task.tags or {}) do look_at('tags', tag, task.project or '') end
    end
    if task.unique then look_at('unique_keys', task.unique.name, task.project or '') end
  end
  for list, its in pairs(listing) do
    local held = redis.call('SCARD', list)
    if held + its.more > its.most then
      for _, name in ipairs(redis.call('SRANDMEMBER', list, KEY.used_sample)) do
        if not is_known(its.kind, name) then table.insert(its.gone, name) end
      end
      if held + its.more - #its.gone > its.most then
        if #its.gone > 0 then redis.call('SREM', list, unpack(its.gone)) end
        return {'capped', its.kind, its.project, its.most}
      end
    end
  end
  local project = tasks[1].project or ''
  local most_keys = once and most_of('idempotency_keys', project) or 0
  if most_keys == 0 then return nil end
  once.count = KEY.once_count .. project
  if tonumber(redis.call('GET', once.count) or 0) >= most_keys then
    return {'capped', 'idempotency_keys', project, most_keys}
  end
end

local refusal = earlier_answer() or missing_parent() or uniques and held_key() or full_queue() or reached_cap()
if refusal then return refusal end

local ENDED = RQ_SET.terminal

-- Notes that a task waits for its parents, or may still read the result of those that have ended: how many of them are
-- not done, and one that ended, but not well.
local function wait_for(id, parents)
  local statuses, unended, ended, undone, broken = {}, {}, {}, 0, nil
  for _, parent in ipairs(parents) do
    local f = redis.call('HMGET', KEY.job .. parent, 'status', 'result_ttl')
    local is_bad = ENDED[f[1]] and f[1] ~= RQ.done
    statuses[parent] = f[1]
    if f[1] ~= RQ.done then undone = undone + 1 end
    if is_bad then broken = broken or parent end
    table.insert(ENDED[f[1]] and ended or unended, parent)
    -- A plain RQ worker would delete the record at once, before a worker pool of ours sees the end.
    local ttl_s = f[1] ~= RQ.done and tonumber(f[2])
    if ttl_s and ttl_s >= 0 and ttl_s < KEY.least_ttl_s then
      redis.call('HSET', KEY.job .. parent, 'result_ttl', KEY.least_ttl_s)
    end
  end
  for _, parent in ipairs(broken and {} or unended) do redis.call('SADD', KEY.dependents .. parent, id) end
  for _, parent in ipairs(broken and unended or {}) do table.insert(ended, parent) end
  for _, parent in ipairs(ended) do
    redis.call('SADD', KEY.needed .. parent, id)
    keep_for_children(parent, statuses[parent] == RQ.done)
  end
  return undone, broken
end

-- The audit's entry (a call with unique keys has one) with other values than the caller could know.
local function audited(what, about, count, last)
  local entry = cjson.decode(call.audit[1])
  entry.what, entry.about, entry.count, entry.last = what, about, count, last
  return cjson.encode(entry)
end

-- Cancels a task that waits, because the task `by` has come in its place.
local function replace(id, by)
  local f = move.record(id, 'status', 'origin', 'seq', 'failure_ttl', 'secret_ttl')
  if f.status == RQ.queued then redis.call('LREM', KEY.queue .. f.origin, -1, id) end
  local error = string.format('canceled: the task %s with the same unique key replaced it', by)
  move.cancel_task(id, f, 'replaced', error, ',"by":"' .. by .. '"', now_ms, stamp)
  if call.audit then audit(KEY.audit_tasks, audited('task.canceled', id)) end
end

-- What Redis refuses when it is full comes first, so that nothing of the call is written then.
for _, entry in ipairs(entering) do redis.call('SADD', entry[1], entry[2]) end
for list, its in pairs(listing) do
  if #its.gone > 0 then redis.call('SREM', list, unpack(its.gone)) end
  for _, name in ipairs(its.names) do redis.call('SADD', list, name) end
end
for index, task in ipairs(uniques and tasks or {}) do
  local unique = not existing[index] and task.unique
  if unique then uniques.hold(unique.name, task.id, unique.held_ms and now_ms + unique.held_ms) end
end
for index, id in pairs(replaced) do replace(id, tasks[index].id) end

local ready, fronts, by_type = {}, {}, {}

local function append(lists, name, value)
  lists[name] = lists[name] or {}
  table.insert(lists[name], value)
end

-- Stores the task at this place; RQ's status of it.
local function store(index, task)
  local id, type, queue, tags, project = task.id, task.kind.type, task.kind.queue, task.tags, task.project
  local key = KEY.job .. id
  local status, rq = STATUS.queued, RQ.queued
  -- A task's first event tells what never changes and filters ask for; the later ones don't repeat it.
  local more = ',"type":"' .. type .. '","queue":"' .. queue .. '"'
  if tags then more = more .. ',"tags":["' .. table.concat(tags, '","') .. '"]' end
  if project then more = more .. ',"project":"' .. project .. '"' end

  local due_ms = task.run_ms or task.delay_ms and now_ms + task.delay_ms or 0
  if due_ms > now_ms then
    status, rq = STATUS.scheduled, RQ.scheduled
    redis.call('HSET', key, 'run_ms', string.format('%.0f', due_ms))
    if not task.run_ms then redis.call('HSET', key, 'run_clock', clock_base(now_ms)) end
  end

  local pending, broken = 0, nil
  if task.parents then
    pending, broken = wait_for(id, task.parents)
    if broken then
      status, rq = STATUS.canceled, RQ.canceled
    elseif pending > 0 then
      status, rq = STATUS.waiting, RQ.waiting
    end
    redis.call('HSET', key, 'pending', pending)
  end

  -- One command for all of it; a task that isn't queued yet gets its creation twice instead of a time of queueing.
  local fields = {'data', ARGV[2 * index + 1], 'description', ARGV[2 * index + 2]}
  for _, part in ipairs(task.kind.fields) do fields[#fields + 1] = part end
  for _, part in ipairs(task.fields or {}) do fields[#fields + 1] = part end
  redis.call('HSET', key, 'status', rq, 'created_at', stamp, 'seq', '1',
    status == STATUS.queued and 'enqueued_at' or 'created_at', stamp, unpack(fields))
  if task.secrets then
    redis.call('SET', KEY.secrets .. id, task.secrets, 'EX',
      task.secret_ttl_s + math.ceil(math.max(due_ms - now_ms, 0) / 1000))
    redis.call('ZADD', KEY.secrets_index, 0, id)
  end
  append(by_type, type, '0')
  append(by_type, type, id)
  for _, tag in ipairs(tags or {}) do redis.call('ZADD', KEY.by_tag .. tag, 0, id) end
  if project then
    redis.call('ZADD', KEY.by_project .. project, 0, id)
    redis.call('SADD', KEY.projects, project)
  end

  if status == STATUS.queued then
    append(task.front and fronts or ready, queue, id)
  elseif status == STATUS.scheduled then
    move.schedule(id, queue, due_ms, now_ms)
  elseif status == STATUS.waiting then
    redis.call('ZADD', KEY.deferred .. queue, string.format('%.3f', now_ms / 1000), id)
  else
    more = more .. string.format(',"reason":"dependency_failed","dependency":"%s"', broken)
    redis.call('HSET', key, 'ended_at', stamp, 'reason', 'dependency_failed',
      'error', string.format('canceled: the task %s it depends on did not end well', broken))
    retain(id, KEY.canceled .. queue, task.kind.failure_ttl_s, now_ms, task.secrets)
  end
  if task.expires_ms and status ~= STATUS.canceled then
    local expires_ms = string.format('%.0f', now_ms + task.expires_ms)
    redis.call('HSET', key, 'expires_ms', expires_ms, 'expires_clock', clock_base(now_ms))
    redis.call('ZADD', KEY.expiring, string.format('%.3f', expires_ms / 1000), id)
  end
  if task.callback_events then
    redis.call('HSET', KEY.webhooks_wanted, id, task.callback_events)
    webhooks_wanted = true
  end
  emit(id, 1, status, status, now_ms, more)
  return rq
end

local reply, stored, first, last = {'ok', stamp}, 0, nil, nil
for index, task in ipairs(tasks) do
  if not existing[index] then stored, first, last = stored + 1, first or task.id, task.id end
  reply[index + 2] = existing[index] or store(index, task)
end

for queue, ids in pairs(fronts) do -- the first one ends up at the head
  local reversed = {}
  for index = #ids, 1, -1 do reversed[#reversed + 1] = ids[index] end
  ring(queue, redis.call('LPUSH', KEY.queue .. queue, unpack(reversed)))
end
for queue, ids in pairs(ready) do ring(queue, redis.call('RPUSH', KEY.queue .. queue, unpack(ids))) end
for type, scored in pairs(by_type) do
  redis.call('ZADD', KEY.by_type .. type, unpack(scored))
  redis.call('SADD', KEY.types_used, type)
end
if call.audit and stored == #tasks then
  for _, entry in ipairs(call.audit) do audit(KEY.audit_submitted, entry) end
elseif call.audit and stored > 0 then
  audit(KEY.audit_submitted, audited('task.submitted', first, stored, stored > 1 and last or nil))
end
if once then
  local answers = {}
  for index, task in ipairs(tasks) do
    answers[index] = existing[index] and '=' .. table.concat(existing[index], ':') or task.id .. ':' .. reply[index + 2]
  end
  redis.call('SET', KEY.once .. once.key, once.fingerprint .. ' ' .. stamp .. ' ' .. table.concat(answers, ','), 'PX',
    once.kept_ms)
  if once.count and redis.call('INCR', once.count) == 1 then redis.call('PEXPIRE', once.count, once.kept_ms) end
end
return reply
