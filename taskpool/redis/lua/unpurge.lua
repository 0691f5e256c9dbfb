-- Puts the record of a removed task back, with all that belongs to it, while that is kept (see purge.lua).
--
-- ARGV[1]  id
-- ARGV[2]  mark of the call that removed it
-- ARGV[3]  mark of this call, by which it is known when it is sent again
-- Returns  'ok' (also when sent again) | 'gone' (it isn't kept any more) | 'other' (another call removed it) | 'exists' (there
--          is a task with its id)

local id, mark = ARGV[1], ARGV[3]
local key, kept = KEY.job .. id, KEY.trash .. KEY.job .. id
if redis.call('HGET', key, 'by_call') == mark then return 'ok' end
local names = {'status', 'origin', 'type', 'tags', 'project', 'secret_ttl', 'log', 'workflow', 'canceled_by', 'trashed_by',
  'trashed_until', 'trashed_wanted'}
local f = {}
for at, value in ipairs(redis.call('HMGET', kept, unpack(names))) do f[names[at]] = value or nil end
if not f.status then return 'gone' end
if f.trashed_by ~= ARGV[2] then return 'other' end
if redis.call('EXISTS', key) == 1 then return 'exists' end

local now_ms = clock()
local ends_s = tonumber(f.trashed_until)
local ttl_s = ends_s == math.huge and -1 or math.max(math.ceil(ends_s - now_ms / 1000), KEY.least_ttl_s)
for _, each in ipairs(keys_of_record(id)) do
  if redis.call('EXISTS', KEY.trash .. each) == 1 then
    redis.call('RENAME', KEY.trash .. each, each)
    redis.call('PERSIST', each)
  end
end
redis.call('HSET', key, 'by_call', mark)
redis.call('HDEL', key, 'trashed_by', 'trashed_until', 'trashed_wanted')
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
if f.canceled_by then redis.call('SADD', KEY.revivable .. f.canceled_by, id) end
if f.trashed_wanted then redis.call('HSET', KEY.webhooks_wanted, id, f.trashed_wanted) end
redis.call('SADD', KEY.queues, KEY.queue .. f.origin)
if f.secret_ttl and redis.call('EXISTS', KEY.secrets .. id) == 1 then
  redis.call('EXPIRE', KEY.secrets .. id, ttl_s < 0 and f.secret_ttl or ttl_s + KEY.expiry_slack_s)
  redis.call('ZADD', KEY.secrets_index, 0, id)
end
if ttl_s >= 0 then redis.call('EXPIRE', KEY.results .. id, ttl_s + KEY.expiry_slack_s) end
redis.call('EXPIRE', KEY.added .. id, KEY.added_ttl_s)
retain(id, RQ_MAP.registry[f.status] .. f.origin, ttl_s, now_ms, f.secret_ttl, f.log, f.workflow)
return 'ok'
