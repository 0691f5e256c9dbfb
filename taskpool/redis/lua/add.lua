-- Adds tasks, all of them or none.
--
-- ARGV[1]   '' for plain tasks: all of one kind, none with an option or an idempotency key. Else the call as JSON. Members
--           that say nothing are left out.
--           kinds  what tasks have in common: {type, queue, failure_ttl_s, first, last: where their fields of the hash
--                  stand in ARGV, names and values alternating}
--           tasks  for each task:
--                  kind (its place in `kinds`, from 1)
--                  confirm (true: a person has to confirm it; the fields have what is asked),
--                  front (true), run_ms (a time), delay_ms, expires_ms (both from now), tags, project,
--                  parents (ids of tasks that must be done), edges ([{ref, on}]: all else that it waits for, see edges.lua),
--                  secrets (taken out of its payload), secret_ttl_s,
--                  callback_events (',done,failed,': the events that its callback gets), fields (of its hash that only this task has)
--                  unique: {name, on_conflict (reject | return | replace), held_ms (as its record says without it),
--                  replaceable ({"types":{name:1},"queues":{name:1}}: what it may replace; without one of them, any)}
--           most   most tasks that a queue may hold of each kind (ready, scheduled, waiting for others)
--           once   {key, fingerprint of what is asked for, kept_ms}: the call is carried out once for this key
--           guard  what must hold, else nothing is added: see GUARDS. One of
--                  attempt: {id, attempt_id}  this attempt adds the tasks, which get `added_by`. A task that an attempt at the same task has added
--                  already isn't added again, and is answered like an existing one
--                  schedule: an occurrence of a schedule, see schedules.lua; and overlaps: true (the run before may be
--                  unended) or the id of a run before that may be. The schedule's next occurrence is set along with it
-- ARGV[2]   how many queues, tags, unique_keys and idempotency_keys a project may use, as JSON ('' = any number). Most calls
--           don't need it, so it is read only when it is needed.
-- ARGV[3]   entries of the audit, one a line ('' = none)
-- ARGV[4]   how many tasks
-- ARGV[5+]  for each task: id, its `data`, its description; behind them, for plain tasks: type, queue, failure_ttl_s,
--           most ('0' = any number), their fields of the hash; else the fields of the kinds
--
-- Or instead of all of this only
-- ARGV[1]   {workflow} as JSON: the arguments are the next chunk of that workflow, in the order of its commits, as
--           workflow_stage.lua has kept it. A parent that is gone counts as removed then, and the tasks of a stopped workflow are canceled at once
--
-- Returns   {'ok', stamp, RQ's status of each task, or 'waiting_confirmation'}. A task that is answered with another one,
--           which holds its unique key (on_conflict is return), has {id, status} of that one instead of a status; 'gone' if
--           that has been removed
--           {'lost'}  the attempt of the guard no longer holds its lease
--           {'stale'}  the schedule of the guard was changed, or has come to another occurrence
--           {'overlap', id, 'waits' or ''}  its run before hasn't ended; 'waits': and stands behind another one itself
--           {'exists', stamp, the same of each task, or 'gone'}  a task with one of the ids exists: this very call was
--           carried out already
--           {'replayed', what is kept for the key}  an earlier call had the same idempotency key
--           {'conflict', index, id of the holder, its status}  another task holds its unique key
--           {'unreplaceable', index}  a task that it may not replace holds its unique key
--           {'unknown_dependency', ref}  this parent doesn't exist
--           {'full', stamp, queue, how many it holds, how many would come, since when its head is queued (or '')}
--           {'capped', which cap, project ('' = none), how many it allows}
--           {'more' | 'end'}  a chunk was stored, and more follow or not

local now_ms, stamp = clock()
local at_ms = now_ms .. '' -- for events: Lua would turn the number into a text for each of them
local ARGV, chunk = ARGV, nil
if #ARGV == 1 then
  chunk = cjson.decode(ARGV[1])
  chunk.tokens = KEY.workflow .. chunk.workflow .. KEY.workflow_expanding
  local token = redis.call('LINDEX', chunk.tokens, 0)
  chunk.staged = token and KEY.staged .. token
  local staged = token and redis.call('LINDEX', chunk.staged, 0)
  if not staged then
    redis.call('ZREM', KEY.expanding, chunk.workflow)
    return {'end'}
  end
  ARGV = cjson.decode(staged)
  chunk.is_stopped = redis.call('HGET', KEY.workflow .. chunk.workflow, 'stop')
end
local call = ARGV[1] ~= '' and cjson.decode(ARGV[1])

-- Most calls add plain tasks that are new, to a known queue that has room for them. What these tasks share is done once;
-- without this, a task costs Redis half as much again.
if not call then
  local n, keys, ids = tonumber(ARGV[4]), {}, {}
  local at = 5 + 3 * n
  local type, queue, most = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 3])
  for index = 1, n do
    ids[index] = ARGV[3 * index + 2]
    keys[index] = KEY.job .. ids[index]
  end
  keys[n + 1] = KEY.webhooks_wanted -- asked for along with them
  local held = redis.call('EXISTS', unpack(keys))
  webhooks_wanted = held > 0 and redis.call('EXISTS', KEY.webhooks_wanted) == 1
  if held == (webhooks_wanted and 1 or 0) and (most == 0 or redis.call('LLEN', KEY.queue .. queue) + n <= most)
    and redis.call('SISMEMBER', KEY.queues, KEY.queue .. queue) == 1 then
    local scored, reply = {}, {'ok', stamp}
    local more = ',"type":"' .. type .. '","queue":"' .. queue .. '"'
    for index, id in ipairs(ids) do
      redis.call('HSET', keys[index], 'status', RQ.queued, 'created_at', stamp, 'seq', '1', 'enqueued_at', stamp,
        'data', ARGV[3 * index + 3], 'description', ARGV[3 * index + 4], unpack(ARGV, at + 4))
      emit(id, '1', EVENT.queued, STATUS.queued, at_ms, more)
      scored[2 * index - 1], scored[2 * index], reply[index + 2] = '0', id, RQ.queued
    end
    redis.call('ZADD', KEY.by_type .. type, unpack(scored))
    local minute = (now_ms - now_ms % 60000) / 60000 -- as in note_submitted, without its functions
    if redis.call('HINCRBY', KEY.stats_submitted .. minute, type .. '|' .. queue, ARGV[4]) == n then
      redis.call('SADD', KEY.stats_open, minute)
      redis.call('SADD', KEY.types_used, type)
    end
    ring(queue, redis.call('RPUSH', KEY.queue .. queue, unpack(ids)))
    for entry in string.gmatch(ARGV[3], '[^\n]+') do audit(KEY.audit_submitted, entry) end
    return reply
  end
  local kind = {type = type, queue = queue, first = at + 4, last = #ARGV}
  kind.failure_ttl_s = tonumber(ARGV[at + 2])
  call = {kinds = {kind}, most = most, tasks = {}}
  for index = 1, n do call.tasks[index] = {kind = 1} end
end

-- <more functions>

local move = moves()
local tasks, once, most = call.tasks, call.once, call.most or 0
local names = used_names(ARGV[2] ~= '' and cjson.decode(ARGV[2]) or {})
local keys, uniques = {}, nil
for index, task in ipairs(tasks) do
  task.id, task.kind = ARGV[3 * index + 2], call.kinds[task.kind]
  keys[index] = KEY.job .. task.id
  if task.unique and not uniques then uniques = unique_keys() end
end

-- A status for an answer: RQ's word, where that is enough.
local function shown(id, status)
  if status ~= RQ.waiting or redis.call('HEXISTS', KEY.job .. id, 'asked_ms') == 0 then return status end
  return STATUS.waiting_confirmation
end

-- By name: checks what a guard says, before everything else; returns why nothing may be added, or nil and what is to be
-- done when the tasks are stored, or nil.
local GUARDS = {
  attempt = function(guard)
    local f = redis.call('HMGET', KEY.job .. guard.id, 'attempt_id', 'status')
    if f[1] ~= guard.attempt_id or f[2] ~= RQ.in_progress then return {'lost'} end
  end,
  schedule = function(guard)
    local its = schedules()
    local f = its.expecting(guard)
    if not f then return {'stale'} end
    local before = guard.overlaps ~= true and its.unended(f.last_task)
    if before and before ~= guard.overlaps then
      return {'overlap', before, its.unended(f.behind) and 'waits' or ''}
    end
    return nil, function(existing)
      its.settle(guard, 'submitted', existing[1] and existing[1][1] or tasks[1].id, before or '', '', now_ms)
    end
  end,
}

local guard, guarded = call.guard or {}, {} -- what to do when the tasks are stored
for name, given in pairs(guard) do
  local refusal, done = GUARDS[name](given)
  if refusal then return refusal end
  guarded[#guarded + 1] = done
end

local existing, replaced = {}, {} -- by the index of the task: {holder, its status}; {holder}

-- What earlier attempts at the same task have added: their ids are the same. The set knows those that have ended and
-- were removed since.
local function find_added(id)
  local list = KEY.added .. id
  local is_kept = redis.call('EXISTS', list) == 1
  for index, task in ipairs(tasks) do
    local status = redis.call('HGET', keys[index], 'status')
    if not status and is_kept and redis.call('SISMEMBER', list, task.id) == 1 then status = 'gone' end
    if status then existing[index] = {task.id, shown(task.id, status)} end
  end
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
    if f[1] or not holder then
      reply[index + 2] = shown(task.id, f[1] or 'gone')
    else
      reply[index + 2] = {holder, shown(holder, redis.call('HGET', KEY.job .. holder, 'status') or 'gone')}
    end
  end
  return reply
end

-- What a task depends on must exist; it may stand earlier in the same call. What belongs to another project doesn't exist
-- for a task.
local function missing_parent()
  local own = {}
  local function is_missing(ref, project)
    if own[ref] then return false end
    local workflow = string.match(ref, '^([^:]*):')
    local f = redis.call('HMGET', workflow and KEY.workflow .. workflow or KEY.job .. ref, 'status', 'project')
    return not (f[1] and (not project or f[2] == project))
  end
  for index, task in ipairs(tasks) do
    for _, parent in ipairs(not existing[index] and task.parents or {}) do
      if is_missing(parent, task.project) then return {'unknown_dependency', parent} end
    end
    for _, edge in ipairs(not existing[index] and task.edges or {}) do
      if is_missing(edge.ref, task.project) then return {'unknown_dependency', edge.ref} end
    end
    own[task.id] = true
  end
end

local function is_replaceable(id, bounds)
  if not bounds then return true end
  local f = redis.call('HMGET', KEY.job .. id, 'type', 'origin')
  if not f[1] then return true end -- it is still to be stored: then it isn't replaced, whatever it is
  return (not bounds.types or bounds.types[f[1]]) and (not bounds.queues or bounds.queues[f[2]])
end

-- Whether a task may give its place to another one. One that is still to be stored, with its workflow, can't; nor one that
-- has started and stopped in the middle, to ask a person.
local function gives_way(id)
  local f = redis.call('HMGET', KEY.job .. id, 'status', 'question')
  return RQ_SET.cancelable[f[1]] and not f[2]
end

local function held_key()
  for index, task in ipairs(tasks) do
    local unique = not existing[index] and task.unique
    local holder, status
    if unique then holder, status = uniques.holder_of(unique.name, now_ms) end
    if holder and unique.on_conflict == 'return' then
      existing[index] = {holder, shown(holder, status)}
    elseif holder and unique.on_conflict == 'replace' and not is_replaceable(holder, unique.replaceable) then
      return {'unreplaceable', index}
    elseif holder and unique.on_conflict == 'replace' and gives_way(holder) then
      replaced[index] = holder
    elseif holder then
      return {'conflict', index, holder, shown(holder, status)}
    end
  end
end

-- A task that takes another's place needs no room.
local function full_queue()
  local coming = {}
  for index, task in ipairs(most > 0 and tasks or {}) do
    if not (existing[index] or replaced[index]) then
      local kind = (task.run_ms or task.delay_ms) and KEY.scheduled or KEY.queue
      if task.parents or task.edges or task.confirm then kind = KEY.deferred end
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

-- Whether projects may use the names that are new.
local function reached_cap()
  for index, task in ipairs(tasks) do
    if not existing[index] then
      names.look_at('queues', KEY.queue .. task.kind.queue, task.project or '')
      for _, tag in ipairs(task.tags or {}) do names.look_at('tags', tag, task.project or '') end
    end
    if task.unique then names.look_at('unique_keys', task.unique.name, task.project or '') end
  end
  return names.reached(once, tasks[1].project or '')
end

if guard.attempt then find_added(guard.attempt.id) end
local function refused()
  return not guard.attempt and earlier_answer() or missing_parent() or uniques and held_key() or full_queue()
end
local refusal = not chunk and refused() or reached_cap() -- the commit of a workflow has checked the rest for its chunks
if refusal then return refusal end

-- Notes with all that a task depends on that the task waits for it, or may still read how it ended: how many of them are
-- not satisfied, and the edge that can't be any more.
local function wait_for(id, task)
  local edge = edges()
  local list = {}
  for _, parent in ipairs(task.parents or {}) do list[#list + 1] = {ref = parent, on = 'success', is_plain = true} end
  for _, each in ipairs(task.edges or {}) do list[#list + 1] = each end
  if task.parents then redis.call('HSET', KEY.job .. id, 'dependency_ids', cjson.encode(task.parents)) end
  if task.edges then redis.call('HSET', KEY.job .. id, 'edges', cjson.encode(task.edges)) end
  local pending, broken = edge.weigh(list)
  edge.enter(id, list, broken, now_ms)
  for _, each in ipairs(list) do
    -- A plain RQ worker would delete the record at once, before a worker pool of ours sees the end.
    local ttl_s = not each.outcome and tonumber(redis.call('HGET', KEY.job .. each.ref, 'result_ttl'))
    if ttl_s and ttl_s >= 0 and ttl_s < KEY.least_ttl_s then
      redis.call('HSET', KEY.job .. each.ref, 'result_ttl', KEY.least_ttl_s)
    end
  end
  redis.call('HSET', KEY.job .. id, 'pending', pending)
  if broken then edge.note_cause(id, broken) end
  return pending, broken, broken and edge.error_of(broken)
end

-- The audit's entry (a call with unique keys has one) with other values than the caller could know.
local function audited(what, about, count, last)
  local entry = cjson.decode(ARGV[3])
  entry.what, entry.about, entry.count, entry.last = what, about, count, last
  return cjson.encode(entry)
end

-- Cancels a task that waits, because the task `by` has come in its place.
local function replace(id, by)
  local f = move.record(id, 'status', 'origin', 'seq', 'failure_ttl', 'secret_ttl')
  if f.status == RQ.queued then redis.call('LREM', KEY.queue .. f.origin, -1, id) end
  local error = string.format('canceled: the task %s with the same unique key replaced it', by)
  move.cancel_task(id, f, 'replaced', error, ',"by":"' .. by .. '"', now_ms, stamp)
  if ARGV[3] ~= '' then audit(KEY.audit_tasks, audited('task.canceled', id)) end
end

-- What Redis refuses when it is full comes first, so that nothing of the call is written then.
names.enter()
for index, task in ipairs(uniques and tasks or {}) do
  local unique = not existing[index] and task.unique
  if unique then uniques.hold(unique.name, task.id, unique.held_ms and now_ms + unique.held_ms) end
end
for index, id in pairs(replaced) do replace(id, tasks[index].id) end
if guard.attempt then
  local list, ids = KEY.added .. guard.attempt.id, {}
  for index, task in ipairs(tasks) do
    if not existing[index] then ids[#ids + 1] = task.id end
  end
  if #ids > 0 then redis.call('SADD', list, unpack(ids)) end
  if #ids > 0 then redis.call('EXPIRE', list, KEY.added_ttl_s) end
end

local ready, fronts, indexes, projects, submitted = {}, {}, {}, {}, {}

local function append(lists, name, value)
  lists[name] = lists[name] or {}
  table.insert(lists[name], value)
end

local function index_by(key, id)
  append(indexes, key, '0')
  append(indexes, key, id)
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

  local pending, broken, error = 0, nil, nil
  if task.parents or task.edges then
    pending, broken, error = wait_for(id, task)
    if broken then
      status, rq = STATUS.canceled, RQ.canceled
    elseif pending > 0 then
      status, rq = STATUS.waiting, RQ.waiting
    end
  end
  if task.confirm and (status == STATUS.queued or status == STATUS.scheduled) then
    status, rq = STATUS.waiting_confirmation, RQ.waiting_confirmation
  end

  if chunk and chunk.is_stopped then status, rq = STATUS.canceled, RQ.canceled end

  -- One command for all of it; a task that isn't queued yet gets its creation twice instead of a time of queueing.
  local fields = {'data', ARGV[3 * index + 3], 'description', ARGV[3 * index + 4],
    unpack(ARGV, task.kind.first, task.kind.last)}
  for _, part in ipairs(task.fields or {}) do fields[#fields + 1] = part end
  if guard.attempt then fields[#fields + 1], fields[#fields + 2] = 'added_by', guard.attempt.id end
  if task.confirm then fields[#fields + 1], fields[#fields + 2] = 'unconfirmed', '1' end
  redis.call('HSET', key, 'status', rq, 'created_at', stamp, 'seq', '1',
    status == STATUS.queued and 'enqueued_at' or 'created_at', stamp, unpack(fields))
  if task.secrets then
    redis.call('SET', KEY.secrets .. id, task.secrets, 'EX',
      task.secret_ttl_s + math.ceil(math.max(due_ms - now_ms, 0) / 1000))
    redis.call('ZADD', KEY.secrets_index, 0, id)
  end
  index_by(KEY.by_type .. type, id)
  local pair = type .. '|' .. queue
  submitted[pair] = submitted[pair] or {type = type, queue = queue, count = 0}
  submitted[pair].count = submitted[pair].count + 1
  for _, tag in ipairs(tags or {}) do index_by(KEY.by_tag .. tag, id) end
  if project then
    index_by(KEY.by_project .. project, id)
    projects[project] = true
  end

  if status == STATUS.queued then
    append(task.front and fronts or ready, queue, id)
  elseif status == STATUS.scheduled then
    move.schedule(id, queue, due_ms, now_ms)
  elseif status == STATUS.waiting_confirmation then
    local told, wait_ms = gates().ask(id, queue, redis.call('HGET', key, 'confirm'), now_ms)
    more = more .. told
    if task.secrets then move.keep_secrets(id, task.secret_ttl_s, wait_ms + math.max(due_ms - now_ms, 0)) end
  elseif status == STATUS.waiting then
    redis.call('ZADD', KEY.deferred .. queue, string.format('%.3f', now_ms / 1000), id)
  else
    local reason = broken and broken.verdict or 'workflow_stopped'
    if broken then more = more .. ',"dependency":"' .. broken.ref .. '"' end
    more = more .. ',"reason":"' .. reason .. '"'
    redis.call('HSET', key, 'ended_at', stamp, 'reason', reason, 'error', error or 'canceled: its workflow was stopped')
    tally(STATUS.canceled, type, queue, nil, now_ms)
    retain(id, KEY.canceled .. queue, task.kind.failure_ttl_s, now_ms, task.secrets, nil, chunk and chunk.workflow)
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
  emit(id, '1', status, status, at_ms, more)
  if chunk and status == STATUS.canceled then members().count(id, chunk.workflow, now_ms, stamp) end
  return status == STATUS.waiting_confirmation and status or rq
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
for key, scored in pairs(indexes) do redis.call('ZADD', key, unpack(scored)) end
for project in pairs(projects) do redis.call('SADD', KEY.projects, project) end
for _, each in pairs(submitted) do note_submitted(each.type, each.queue, each.count, now_ms) end
if chunk then
  redis.call('LPOP', chunk.staged)
  redis.call('HINCRBY', KEY.workflow .. chunk.workflow, 'chunks', -1)
  if redis.call('EXISTS', chunk.staged) == 0 then redis.call('LPOP', chunk.tokens) end
  if redis.call('EXISTS', chunk.tokens) == 0 then
    redis.call('ZREM', KEY.expanding, chunk.workflow)
    return {'end'}
  end
  redis.call('ZADD', KEY.expanding, now_ms, chunk.workflow)
  return {'more'}
end
if stored == #tasks then
  for entry in string.gmatch(ARGV[3], '[^\n]+') do audit(KEY.audit_submitted, entry) end
elseif ARGV[3] ~= '' and stored > 0 then
  audit(KEY.audit_submitted, audited('task.submitted', first, stored, stored > 1 and last or nil))
end
if once then
  local answers = {}
  for index, task in ipairs(tasks) do
    answers[index] = existing[index] and '=' .. table.concat(existing[index], ':') or task.id .. ':' .. reply[index + 2]
  end
  redis.call('SET', KEY.once .. once.key, once.fingerprint .. ' ' .. stamp .. ' ' .. table.concat(answers, ','), 'PX',
    once.kept_ms)
  names.count(once)
end
for _, done in ipairs(guarded) do done(existing) end
return reply
