-- Puts the record of a removed task back, with all that belongs to it, while that is kept (see purge.lua).
--
-- ARGV[1]  id
-- ARGV[2]  mark of the call that removed it
-- ARGV[3]  mark of this call, by which it is known when it is sent again
-- ARGV[4]  the program that goes on with the operation of this mark; nil = there is none
-- Returns  'ok' (also when sent again) | 'gone' (it isn't kept any more, or its workflow was removed) | 'other' (another call
--          removed it) | 'exists' (there is a task with its id) | 'lost' (another program goes on with the operation, or it
--          has ended)

local move, edge, unique = moves(), edges(), unique_keys()
local id, work = ARGV[1], work_of(ARGV[3], ARGV[4])
local key, kept = KEY.job .. id, KEY.trash .. KEY.job .. id
if work.is_lost() then return 'lost' end
if work.has_changed(move.record(id, 'by_call', 'operations')) then return 'ok' end
local names = {'status', 'origin', 'type', 'tags', 'project', 'secret_ttl', 'log', 'workflow', 'canceled_by', 'unique',
  'dependency_ids', 'edges', 'operations', 'trashed_by', 'trashed_until', 'trashed_wanted', 'trashed_held',
  'trashed_unique'}
local f = {}
for at, value in ipairs(redis.call('HMGET', kept, unpack(names))) do f[names[at]] = value or nil end
if not f.status then return 'gone' end
if f.trashed_by ~= ARGV[2] then return 'other' end
if redis.call('EXISTS', key) == 1 then return 'exists' end
if is_removed(f.workflow) then return 'gone' end

local now_ms = clock()
local ends_s = tonumber(f.trashed_until)
local ttl_s = ends_s == math.huge and -1 or math.max(math.ceil(ends_s - now_ms / 1000), KEY.least_ttl_s)
for _, each in ipairs(keys_of_record(id)) do
  if redis.call('EXISTS', KEY.trash .. each) == 1 then
    redis.call('RENAME', KEY.trash .. each, each)
    redis.call('PERSIST', each)
  end
end
if (ARGV[4] or '') ~= '' then f.operations = with_operation(f.operations, ARGV[2]) end
redis.call('HSET', key, work.fields(f))
redis.call('HDEL', key, 'trashed_by', 'trashed_until', 'trashed_wanted', 'trashed_held', 'trashed_unique')
if f.type then
  redis.call('ZADD', KEY.by_type .. f.type, 0, id)
  redis.call('SADD', KEY.types_used, f.type)
end
for tag in string.gmatch(f.tags or '', '[^,]+') do
  redis.call('ZADD', KEY.by_tag .. tag, 0, id)
  redis.call('SADD', KEY.tags, tag)
end
if f.project then
  redis.call('ZADD', KEY.by_project .. f.project, 0, id)
  redis.call('SADD', KEY.projects, f.project)
end
if f.trashed_wanted ~= '' then redis.call('HSET', KEY.webhooks_wanted, id, f.trashed_wanted) end
redis.call('SADD', KEY.queues, KEY.queue .. f.origin)
local name = f.trashed_unique ~= '' and string.match(f.unique or '', ' (%S+)$')
if name and tonumber(f.trashed_unique) > now_ms and not unique.holder_of(name, now_ms) then
  unique.hold(name, id, tonumber(f.trashed_unique))
end
if f.secret_ttl and redis.call('EXISTS', KEY.secrets .. id) == 1 then
  redis.call('EXPIRE', KEY.secrets .. id, ttl_s < 0 and f.secret_ttl or ttl_s + KEY.expiry_slack_s)
  redis.call('ZADD', KEY.secrets_index, 0, id)
end
if ttl_s >= 0 then redis.call('EXPIRE', KEY.results .. id, ttl_s + KEY.expiry_slack_s) end
redis.call('EXPIRE', KEY.added .. id, KEY.added_ttl_s)
retain(id, RQ_MAP.registry[f.status] .. f.origin, ttl_s, now_ms, f.secret_ttl, f.log, f.workflow)
-- It was held for others beyond its time, or is now: housekeeping looks at it again.
if f.trashed_held ~= '' then
  redis.call('PERSIST', key)
  redis.call('PERSIST', KEY.results .. id)
  redis.call('ZADD', KEY.held, f.trashed_held, id)
end

-- Its parents. If one of them caused its cancelation, a retry of that one revives it. It may read the outcomes of those
-- that are done.
if f.canceled_by then edge.note_cause(id, {ref = f.canceled_by, outcome = edge.outcome_of(f.canceled_by)}) end
for _, each in ipairs(f.status ~= RQ.done and edge.list_of(f.dependency_ids, f.edges) or {}) do
  if edge.outcome_of(each.ref) == STATUS.done and not edge.is_inside(each.ref, id) then
    redis.call('SADD', KEY.needed .. each.ref, id)
    hold(each.ref, now_ms)
  end
end
return 'ok'
