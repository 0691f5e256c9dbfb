-- Makes staged chunks and nodes a workflow, or a part of one: from here on all of its tasks will be stored.
--
-- ARGV[1]  the call as JSON. Members that say nothing are left out.
--          workflow  id
--          token     names the staged chunks and nodes
--          chunks    how many chunks there must be; count: how many tasks they hold
--          maps      [[name, how many tasks it has], ...]
--          handled   the nodes, old and new, that a new node follows with `any` or `failure`
--          parents   the ids of tasks outside of the workflow that new ones depend on; groups: those of workflows
--          unique    [[unique key, id of the task that takes it], ...]
--          places    [[queue | scheduled | deferred, queue, how many tasks come], ...]
--          most      most tasks that a queue may hold of each kind
--          ttl       [seconds that a workflow is kept that is done, and one that isn't]; negative: for ever
--          project
--          name      of a new workflow; without it, tasks are added to one
--          once      {key, fingerprint, kept_ms}: see add.lua
--          caps      how many queues, tags, unique_keys and idempotency_keys the project may use; names: those that the new
--                    tasks use, {queues, tags}
--          attempt   [id, attempt id]: the running member that adds them
-- ARGV[2]  entry of the audit; '' = none
-- Returns  {'ok'} (also when sent again)
--          {'replayed', what is kept for the key} | {'conflict', index, id of the holder, its status}
--          {'unknown_dependency', id} | {'full', stamp, queue, held, coming, since} | {'capped', which cap, project, most}:
--          as add.lua
--          {'lost'}  the attempt holds no lease any more
--          {'gone'}  the workflow to add to doesn't exist
--          {'stopping'}  it was stopped
--          {'unstaged'}  the chunks have expired
--          {'name', name}  the workflow has a node with this name
--          {'many'}  the workflow would have too many tasks

local call = cjson.decode(ARGV[1])
local now_ms, stamp = clock()
local key, staged = KEY.workflow .. call.workflow, KEY.staged .. call.token
local is_new, once = call.name ~= nil, call.once

local kept = once and redis.call('GET', KEY.once .. once.key)
if kept then return {'replayed', kept} end

local w = redis.call('HMGET', key, 'status', 'stop', 'total', 'project', 'result_ttl', 'failure_ttl')
if is_new and w[1] then return {'ok'} end
if call.attempt then
  local f = redis.call('HMGET', KEY.job .. call.attempt[1], 'attempt_id', 'status', 'committed')
  if f[3] == call.token then return {'ok'} end
  if f[1] ~= call.attempt[2] or f[2] ~= RQ.in_progress then return {'lost'} end
end
if not is_new and not w[1] then return {'gone'} end
if w[2] then return {STATUS.stopping} end
if redis.call('LLEN', staged) ~= call.chunks then return {'unstaged'} end
local total = tonumber(w[3] or 0) + call.count
if total > KEY.workflow_most or tonumber(redis.call('HGET', key, 'reserved') or 0) > KEY.workflow_most then return {'many'} end

local names = is_new and {} or redis.call('HKEYS', staged .. KEY.workflow_nodes)
for _, name in ipairs(names) do
  if redis.call('HEXISTS', key .. KEY.workflow_nodes, name) == 1 then return {'name', name} end
end
local function is_there(other, status, project)
  return status and (not call.project or project == call.project)
end
for _, parent in ipairs(call.parents or {}) do
  local f = redis.call('HMGET', KEY.job .. parent, 'status', 'project')
  if not is_there(parent, f[1], f[2]) then return {'unknown_dependency', parent} end
end
for _, group in ipairs(call.groups or {}) do
  local f = redis.call('HMGET', KEY.workflow .. group, 'status', 'project')
  if not is_there(group, f[1], f[2]) then return {'unknown_dependency', group} end
end
local uniques = call.unique and unique_keys()
for index, unique in ipairs(call.unique or {}) do
  local holder, status = uniques.holder_of(unique[1], now_ms)
  if holder then return {'conflict', index, holder, status} end
end
local PLACE = {queue = KEY.queue, scheduled = KEY.scheduled, deferred = KEY.deferred}
for _, place in ipairs(call.most and call.places or {}) do
  local kind, queue, coming = PLACE[place[1]], place[2], place[3]
  local held = redis.call(kind == KEY.queue and 'LLEN' or 'ZCARD', kind .. queue)
  if held + coming > call.most then
    local head = kind == KEY.queue and redis.call('LINDEX', kind .. queue, 0)
    return {'full', stamp, queue, held, coming, head and redis.call('HGET', KEY.job .. head, 'enqueued_at') or ''}
  end
end
local used = used_names(call.caps or {})
local project = call.project or ''
for _, queue in ipairs(call.names.queues) do used.look_at('queues', KEY.queue .. queue, project) end
for _, tag in ipairs(call.names.tags) do used.look_at('tags', tag, project) end
for _, unique in ipairs(call.unique or {}) do used.look_at('unique_keys', unique[1], project) end
local refusal = used.reached(once, project)
if refusal then return refusal end

-- The longest time of all that were given.
local function longest(old, new)
  old = tonumber(old or 0)
  return (old < 0 or new < 0) and -1 or math.max(old, new)
end

used.enter()
redis.call('HSET', key, 'total', total, 'result_ttl', longest(w[5], call.ttl[1]), 'failure_ttl', longest(w[6], call.ttl[2]))
if is_new then
  redis.call('HSET', key, 'name', call.name, 'status', STATUS.in_progress, 'created_at', stamp, 'seq', 0, 'ended', 0,
    'percent', 0, 'reserved', total)
  if call.project then redis.call('HSET', key, 'project', call.project) end
  redis.call('ZADD', KEY.workflows, 0, call.workflow)
  if call.project then redis.call('ZADD', KEY.workflows_of .. call.project, 0, call.workflow) end
  redis.call('ZADD', KEY.workflows_open, 0, call.workflow)
  for _, part in ipairs({KEY.workflow_order, KEY.workflow_nodes}) do
    redis.call('RENAME', staged .. part, key .. part)
    redis.call('PERSIST', key .. part)
  end
else
  redis.call('HSET', KEY.job .. call.attempt[1], 'committed', call.token)
  for _, name in ipairs(names) do
    redis.call('HSET', key .. KEY.workflow_nodes, name, redis.call('HGET', staged .. KEY.workflow_nodes, name))
    redis.call('ZADD', key .. KEY.workflow_order, redis.call('ZSCORE', staged .. KEY.workflow_order, name), name)
  end
  redis.call('DEL', staged .. KEY.workflow_nodes, staged .. KEY.workflow_order)
end
for _, map in ipairs(call.maps or {}) do redis.call('HSET', key, 'map:' .. map[1] .. ':total', map[2]) end
for _, name in ipairs(call.handled or {}) do
  if redis.call('HSETNX', key, 'handled:' .. name, 1) == 1 then
    local bad = tonumber(redis.call('HGET', key, 'bad:' .. name) or 0)
    if bad > 0 then redis.call('HINCRBY', key, 'unhandled', -bad) end
  end
end
for _, unique in ipairs(call.unique or {}) do uniques.hold_for(unique[1], unique[2], now_ms) end
if call.chunks > 0 then
  redis.call('PERSIST', staged)
  redis.call('HINCRBY', key, 'chunks', call.chunks)
  redis.call('RPUSH', key .. KEY.workflow_expanding, call.token)
  redis.call('ZADD', KEY.expanding, now_ms, call.workflow)
end
local seq = redis.call('HINCRBY', key, 'seq', 1)
if is_new then
  emit(call.workflow, seq, 'workflow_started', STATUS.in_progress, now_ms, ',"name":"' .. call.name .. '","total":' .. total
    .. (call.project and ',"project":"' .. call.project .. '"' or ''))
else
  emit(call.workflow, seq, 'workflow_added', w[1], now_ms, ',"added":' .. call.count .. ',"total":' .. total)
end
if once then
  redis.call('SET', KEY.once .. once.key, once.fingerprint .. ' ' .. stamp .. ' ' .. call.workflow .. ':workflow', 'PX',
    once.kept_ms)
  used.count(once)
end
audit(KEY.audit_submitted, ARGV[2])
return {'ok'}
