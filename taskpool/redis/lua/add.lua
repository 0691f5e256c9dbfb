-- Adds tasks, all or none.
--
-- ARGV[1]  n, the number of tasks
-- ARGV[2]  most tasks that a queue may hold of each kind (ready, scheduled, waiting for others); '0' = any number
-- ARGV[3]  how many queues, tags, unique keys and idempotency keys a project may use ('0' = any number), with blanks
-- ARGV[4]  entries of the audit, one a line ('' = none)
-- ARGV[5]  '1': no task has an option, so nothing of that is looked for, and nothing follows the tasks
-- ARGV[6+] for each task:
--          id, queue, type, front ('1' or ''), run_ms (absolute; '' = now), delay_ms ('' = none),
--          expires_ms (from now; '' = never), tags (comma separated), parents (ids, comma separated),
--          secrets (what was taken out of its payload; '' = nothing),
--          events its callback is told of (',done,failed,'; '' = it has none),
--          project ('' = none),
--          k, and k alternating field names and values of the task's hash
--          and then, only if any is asked for:
--          key under which this call is carried out once ('' = none), fingerprint of what it asks for, ms it is kept;
--          for each task that has a unique key: its index from 1, the key, on_conflict (reject | return | replace),
--          ms that it is held ('' = as its record says), the types and queues of tasks that it may replace
--          ({"types":{name:1},"queues":{name:1}}; without one of them, or '' = any)
-- Returns  {'ok', stamp, status of each task in order}; of one that was there already (on_conflict is return) instead
--          of a status '=id:status'
--          {'exists', stamp, the same of each, or 'gone'}  when any id exists: this very call was already carried out
--          {'replayed', stamp, 'id:status' or '=id:status' of each}  the key of an earlier call: what that was answered
--          {'other', ''}  the key of an earlier call that asked for something else
--          {'conflict', index, id of the holder, its status}  its unique key is held
--          {'unreplaceable', index}  its unique key is held by a task that it may not replace
--          {'unknown_dependency', id of the parent that doesn't exist}
--          {'full', stamp, queue, how many it holds, how many would come, since when its head is queued (or '')}
--          {'capped', which cap, project ('' = none), how many it allows}

local FIXED, FIRST = 13, 6
local n, most = tonumber(ARGV[1]), tonumber(ARGV[2])

-- Most calls: one new task without options, for a known queue with room. As below, without a look for what it can't have.
if n == 1 and ARGV[5] == '1' and (most == 0 or redis.call('LLEN', KEY.queue .. ARGV[FIRST + 1]) < most)
  and redis.call('EXISTS', KEY.job .. ARGV[FIRST]) == 0
  and redis.call('SISMEMBER', KEY.queues, KEY.queue .. ARGV[FIRST + 1]) == 1 then
  local id, queue, type = ARGV[FIRST], ARGV[FIRST + 1], ARGV[FIRST + 2]
  local now_ms, stamp = clock()
  redis.call('HSET', KEY.job .. id, 'status', RQ.queued, 'created_at', stamp, 'seq', '1', 'enqueued_at', stamp,
    unpack(ARGV, FIRST + FIXED))
  redis.call('ZADD', KEY.by_type .. type, 0, id)
  redis.call('SADD', KEY.types_used, type)
  emit(id, 1, EVENT.queued, STATUS.queued, now_ms, ',"type":"' .. type .. '","queue":"' .. queue .. '"')
  ring(queue, redis.call('RPUSH', KEY.queue .. queue, id))
  audit(KEY.audit_submitted, ARGV[4])
  return {'ok', stamp, STATUS.queued}
end

local entry_of, holder_of, hold = unique_keys()
local ENDED = RQ_SET.terminal

local function rq_status(id)
  return redis.call('HGET', KEY.job .. id, 'status')
end

-- Notes that a task waits for its parents, or may still read the result of those that have ended: how many of them are
-- not done, and one that ended, but not well.
local function wait_for(id, parents)
  local statuses, unended, ended, undone, broken = {}, {}, {}, 0, nil
  for parent in string.gmatch(parents, '[^,]+') do
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

-- Whether the caller may replace it.
local function is_replaceable(id, allowed)
  if allowed == '' then return true end
  local bounds, f = cjson.decode(allowed), redis.call('HMGET', KEY.job .. id, 'type', 'origin')
  return (not bounds.types or bounds.types[f[1]]) and (not bounds.queues or bounds.queues[f[2]])
end

-- The audit's entry (where tasks have unique keys there is one), about something else than was thought before.
local function audited(what, about, count, last)
  if ARGV[4] == '' then return '' end
  local entry = cjson.decode(ARGV[4])
  entry.what, entry.about, entry.count, entry.last = what, about, count, last
  return cjson.encode(entry)
end

-- Cancels a task that waits, because the task `by` has come in its place.
local function replace(id, by, now_ms, stamp)
  local key = KEY.job .. id
  local f = redis.call('HMGET', key, 'status', 'origin', 'seq', 'failure_ttl', 'secret_ttl')
  local queue, seq = f[2], tonumber(f[3] or 0) + 1
  if f[1] == RQ.queued then redis.call('LREM', KEY.queue .. queue, -1, id) end
  redis.call('ZREM', KEY.scheduled .. queue, id)
  redis.call('ZREM', KEY.deferred .. queue, id)
  redis.call('ZREM', KEY.expiring, id)
  redis.call('HSET', key, 'status', RQ.canceled, 'ended_at', stamp, 'seq', seq, 'reason', 'replaced', 'error',
    string.format('canceled: the task %s with the same unique key replaced it', by))
  retain(id, KEY.canceled .. queue, tonumber(f[4]) or KEY.failure_ttl_s, now_ms, f[5])
  emit(id, seq, EVENT.canceled, STATUS.canceled, now_ms, string.format(',"reason":"replaced","by":"%s"', by))
  audit(KEY.audit_tasks, audited('task.canceled', id))
end

-- Is it a repetition, because the answer to the first was lost? Then it is answered again, whatever became of parents.
-- The first of a batch may have run and been purged since: each id counts.
local keys, next_at = {}, FIRST
for index = 1, n do
  keys[index] = KEY.job .. ARGV[next_at]
  next_at = next_at + FIXED + tonumber(ARGV[next_at + FIXED - 1])
end
local once_key, uniques_at = ARGV[next_at], next_at + 3
if once_key and once_key ~= '' then
  local kept = redis.call('GET', KEY.once .. once_key)
  if kept then
    local fingerprint, stamp, answers = string.match(kept, '^(%S+) (%S+) (.+)$')
    if fingerprint ~= ARGV[next_at + 1] then return {'other', ''} end
    local reply = {'replayed', stamp}
    for answer in string.gmatch(answers, '[^,]+') do table.insert(reply, answer) end
    return reply
  end
end
if redis.call('EXISTS', unpack(keys)) > 0 then
  local reply = {'exists', ''}
  for index, key in ipairs(keys) do
    local f = redis.call('HMGET', key, 'status', 'created_at')
    reply[index + 2] = f[1] or 'gone'
    if f[2] then reply[2] = f[2] end
  end
  for at = uniques_at, #ARGV, 5 do -- one that isn't there was answered with the task that holds its key
    local index = tonumber(ARGV[at]) + 2
    local holder = reply[index] == 'gone' and entry_of(ARGV[at + 1])
    if holder then reply[index] = '=' .. holder .. ':' .. (rq_status(holder) or 'gone') end
  end
  return reply
end

-- Whether a task with this project may wait for that one: another project's isn't there for it.
local function is_there(parent, project)
  local f = redis.call('HMGET', KEY.job .. parent, 'status', 'project')
  return f[1] and (project == '' or f[2] == project)
end

-- Check: does every parent exist (it may stand earlier in the same call)?
local at, own = FIRST, {}
for _ = 1, ARGV[5] == '1' and 0 or n do
  local id = ARGV[at]
  for parent in string.gmatch(ARGV[at + 8], '[^,]+') do
    if not own[parent] and not is_there(parent, ARGV[at + 11]) then
      return {'unknown_dependency', parent}
    end
  end
  own[id] = true
  at = at + FIXED + tonumber(ARGV[at + FIXED - 1])
end

-- Check: whose unique keys are held?
local existing, replaced, roomless = {}, {}, {}
local now_ms, stamp = clock()
for at = uniques_at, #ARGV, 5 do
  local index, on_conflict = tonumber(ARGV[at]), ARGV[at + 2]
  local holder, status = holder_of(ARGV[at + 1], now_ms)
  if holder and on_conflict == 'return' then
    existing[index] = '=' .. holder .. ':' .. status
    roomless[index] = true
  elseif holder and on_conflict == 'replace' and not is_replaceable(holder, ARGV[at + 4]) then
    return {'unreplaceable', index}
  elseif holder and on_conflict == 'replace' and RQ_SET.cancelable[status] then
    table.insert(replaced, {holder, string.sub(keys[index], #KEY.job + 1)})
    roomless[index] = true
  elseif holder then
    return {'conflict', index, holder, status}
  end
end

-- Check: is there room for what needs some? A task that takes another's place doesn't.
local coming = {}
at = FIRST
for index = 1, most > 0 and n or 0 do
  if not roomless[index] then
    local kind = ARGV[at + 8] ~= '' and KEY.deferred
      or (ARGV[at + 4] ~= '' or ARGV[at + 5] ~= '') and KEY.scheduled or KEY.queue
    local place = kind .. ARGV[at + 1]
    coming[place] = coming[place] or {kind, ARGV[at + 1], 0}
    coming[place][3] = coming[place][3] + 1
  end
  at = at + FIXED + tonumber(ARGV[at + FIXED - 1])
end
for place, what in pairs(coming) do
  local kind, queue, count = what[1], what[2], what[3]
  local held = redis.call(kind == KEY.queue and 'LLEN' or 'ZCARD', place)
  if held + count > most then
    local head = kind == KEY.queue and redis.call('LINDEX', place, 0)
    return {'full', stamp, queue, held, count, head and redis.call('HGET', KEY.job .. head, 'enqueued_at') or ''}
  end
end

-- Check: may the projects use what is new? A project that has reached a cap is looked through for names that are gone: some
-- of them with each call, because there may be many.
local INDEX = {queues = KEY.queues, tags = KEY.tags}
local caps, looked_at, entering, listing = {}, {}, {}, {}
caps.queues, caps.tags, caps.unique_keys, caps.idempotency_keys = string.match(ARGV[3], '^(%d+) (%d+) (%d+) (%d+)$')

local function most_of(kind, project)
  return (tonumber(caps[kind]) or 0) * (project == '' and KEY.without_project or 1)
end

local function is_known(kind, name)
  if kind == 'unique_keys' then return redis.call('HEXISTS', KEY.unique, name) == 1 end
  return redis.call('SISMEMBER', INDEX[kind], name) == 1
end

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

at = FIRST
for index = 1, n do
  if not existing[index] then
    look_at('queues', KEY.queue .. ARGV[at + 1], ARGV[at + 11])
    for tag in string.gmatch(ARGV[at + 7], '[^,]+') do look_at('tags', tag, ARGV[at + 11]) end
  end
  at = at + FIXED + tonumber(ARGV[at + FIXED - 1])
end
for at = uniques_at, #ARGV, 5 do
  look_at('unique_keys', ARGV[at + 1], string.match(ARGV[at + 1], '^([^\31]*)\31') or '')
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
local project, once_count = ARGV[FIRST + 11], nil
local most_keys = most_of('idempotency_keys', project)
if once_key and once_key ~= '' and most_keys > 0 then
  once_count = KEY.once_count .. project
  if tonumber(redis.call('GET', once_count) or 0) >= most_keys then
    return {'capped', 'idempotency_keys', project, most_keys}
  end
end

-- Write. What comes first is refused when Redis is full, and with it all.
for _, entry in ipairs(entering) do redis.call('SADD', entry[1], entry[2]) end
for list, its in pairs(listing) do
  if #its.gone > 0 then redis.call('SREM', list, unpack(its.gone)) end
  for _, name in ipairs(its.names) do redis.call('SADD', list, name) end
end
for at = uniques_at, #ARGV, 5 do
  local index, until_ms = tonumber(ARGV[at]), ARGV[at + 3]
  if not existing[index] then
    hold(ARGV[at + 1], string.sub(keys[index], #KEY.job + 1), until_ms ~= '' and now_ms + tonumber(until_ms))
  end
end
for _, pair in ipairs(replaced) do replace(pair[1], pair[2], now_ms, stamp) end

local ready, fronts, by_type = {}, {}, {}

-- Stores the task whose arguments begin at `at`; RQ's status of it.
local function store(at)
  local id, queue, type, front, run_ms, delay_ms, expires_ms, tags, parents =
    ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8]
  local secrets, callback_events, project, k = ARGV[at + 9], ARGV[at + 10], ARGV[at + 11], tonumber(ARGV[at + 12])
  local key = KEY.job .. id
  local status, rq = STATUS.queued, RQ.queued
  -- A task's first event tells what never changes and filters ask for; the later ones don't repeat it.
  local more = ',"type":"' .. type .. '","queue":"' .. queue .. '"'
    .. (tags == '' and '' or ',"tags":["' .. string.gsub(tags, ',', '","') .. '"]')
    .. (project == '' and '' or ',"project":"' .. project .. '"')

  local due_ms = (run_ms ~= '' and tonumber(run_ms)) or (delay_ms ~= '' and now_ms + tonumber(delay_ms)) or 0
  if due_ms > now_ms then
    status, rq = STATUS.scheduled, RQ.scheduled
    redis.call('HSET', key, 'run_ms', string.format('%.0f', due_ms))
    if run_ms == '' then redis.call('HSET', key, 'run_clock', clock_base(now_ms)) end
  end

  local pending, broken = 0, nil
  if parents ~= '' then
    pending, broken = wait_for(id, parents)
    if broken then
      status, rq = STATUS.canceled, RQ.canceled
    elseif pending > 0 then
      status, rq = STATUS.waiting, RQ.waiting
    end
    redis.call('HSET', key, 'pending', pending)
  end

  -- One command for all of it; a task that isn't queued yet gets its creation twice instead of a time of queueing.
  redis.call('HSET', key, 'status', rq, 'created_at', stamp, 'seq', '1',
    status == STATUS.queued and 'enqueued_at' or 'created_at', stamp, unpack(ARGV, at + FIXED, at + FIXED + k - 1))
  if secrets ~= '' then
    redis.call('SET', KEY.secrets .. id, secrets, 'EX',
      redis.call('HGET', key, 'secret_ttl') + math.ceil(math.max(due_ms - now_ms, 0) / 1000))
    redis.call('ZADD', KEY.secrets_index, 0, id)
  end
  by_type[type] = by_type[type] or {}
  table.insert(by_type[type], '0')
  table.insert(by_type[type], id)
  for tag in string.gmatch(tags, '[^,]+') do
    redis.call('ZADD', KEY.by_tag .. tag, 0, id)
  end
  if project ~= '' then
    redis.call('ZADD', KEY.by_project .. project, 0, id)
    redis.call('SADD', KEY.projects, project)
  end

  if status == STATUS.queued then
    if front == '1' then
      fronts[queue] = fronts[queue] or {}
      table.insert(fronts[queue], id)
    else
      ready[queue] = ready[queue] or {}
      table.insert(ready[queue], id)
    end
  elseif status == STATUS.scheduled then
    schedule(id, queue, due_ms, now_ms)
  elseif status == STATUS.waiting then
    redis.call('ZADD', KEY.deferred .. queue, string.format('%.3f', now_ms / 1000), id)
  else
    more = more .. string.format(',"reason":"dependency_failed","dependency":"%s"', broken)
    redis.call('HSET', key, 'ended_at', stamp, 'reason', 'dependency_failed',
      'error', string.format('canceled: the task %s it depends on did not end well', broken))
    retain(id, KEY.canceled .. queue, tonumber(redis.call('HGET', key, 'failure_ttl')), now_ms, secrets ~= '')
  end
  if expires_ms ~= '' and status ~= STATUS.canceled then
    local expires_at = string.format('%.0f', now_ms + tonumber(expires_ms))
    redis.call('HSET', key, 'expires_ms', expires_at, 'expires_clock', clock_base(now_ms))
    redis.call('ZADD', KEY.expiring, string.format('%.3f', expires_at / 1000), id)
  end
  if callback_events ~= '' then
    redis.call('HSET', KEY.webhooks_wanted, id, callback_events)
    webhooks_wanted = true
  end
  emit(id, 1, status, status, now_ms, more)
  return rq
end

local reply, stored, first, last = {'ok', stamp}, 0, nil, nil
at = FIRST
for index = 1, n do
  if not existing[index] then
    stored, first, last = stored + 1, first or ARGV[at], ARGV[at]
  end
  reply[index + 2] = existing[index] or store(at)
  at = at + FIXED + tonumber(ARGV[at + FIXED - 1])
end

for queue, ids in pairs(fronts) do -- the first one ends up at the head
  local reversed = {}
  for index = #ids, 1, -1 do reversed[#reversed + 1] = ids[index] end
  ring(queue, redis.call('LPUSH', KEY.queue .. queue, unpack(reversed)))
end
for queue, ids in pairs(ready) do
  ring(queue, redis.call('RPUSH', KEY.queue .. queue, unpack(ids)))
end
for type, pairs_ in pairs(by_type) do
  redis.call('ZADD', KEY.by_type .. type, unpack(pairs_))
  redis.call('SADD', KEY.types_used, type)
end
if stored == n then
  for entry in string.gmatch(ARGV[4], '[^\n]+') do audit(KEY.audit_submitted, entry) end
elseif stored > 0 then
  audit(KEY.audit_submitted, audited('task.submitted', first, stored, stored > 1 and last or nil))
end
if once_key and once_key ~= '' then
  local answers = {}
  for index, key in ipairs(keys) do
    answers[index] = existing[index] or string.sub(key, #KEY.job + 1) .. ':' .. reply[index + 2]
  end
  redis.call('SET', KEY.once .. once_key, ARGV[next_at + 1] .. ' ' .. stamp .. ' ' .. table.concat(answers, ','),
    'PX', ARGV[next_at + 2])
  if once_count and redis.call('INCR', once_count) == 1 then redis.call('PEXPIRE', once_count, ARGV[next_at + 2]) end
end
return reply
