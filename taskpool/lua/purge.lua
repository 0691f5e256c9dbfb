-- Removes an ended task: its record, log, results and every index entry. Repeating it changes nothing.
--
-- ARGV[1]  id
-- ARGV[2]  '' = now; a registry's key: only when its time in there has come
-- ARGV[3]  entry of the audit; '' = none
-- Returns  'ok' | 'early' | 'gone' (only left-overs were dropped) | 'children' (tasks that wait for it must be
--          released first) | RQ's word of the status that doesn't allow it

local id, registry = ARGV[1], ARGV[2]
local key = KEY.job .. id
local f = redis.call('HMGET', key, 'status', 'origin', 'type', 'tags', 'ended_at', 'seq', 'failure_ttl', 'secret_ttl',
  'callback_url', 'unique', 'log', 'project')
local status = f[1]
local now_ms, stamp = clock()
if registry ~= '' then
  local score = redis.call('ZSCORE', registry, id)
  if score and tonumber(score) * 1000 > now_ms then return 'early' end
end
if status and status ~= 'finished' and status ~= 'failed' and status ~= 'stopped' and status ~= 'canceled' then
  if registry ~= '' then redis.call('ZREM', registry, id) end -- what stands there is of a former life
  return status
end

-- RQ's own cancel enters a job as due at once and says nothing more: it is kept and told of like one that we canceled.
if registry ~= '' and status == 'canceled' and (f[5] or '') == '' then
  local seq = tonumber(f[6] or 0) + 1
  redis.call('ZREM', KEY.expiring, id)
  redis.call('HSET', key, 'ended_at', stamp, 'seq', seq, 'reason', 'canceled', 'error', 'canceled before it started')
  retain(id, registry, tonumber(f[7]) or 604800, now_ms, f[8], f[11])
  emit(id, seq, 'canceled', 'canceled', now_ms, ',"reason":"canceled"')
  return 'early'
end
if status and redis.call('EXISTS', KEY.dependents .. id) == 1 then return 'children' end

if registry ~= '' then redis.call('ZREM', registry, id) end
if status then
  redis.call('ZREM', KEY.finished .. f[2], id)
  redis.call('ZREM', KEY.failed .. f[2], id)
  redis.call('ZREM', KEY.canceled .. f[2], id)
end
if f[3] then
  redis.call('ZREM', KEY.by_type .. f[3], id)
  if redis.call('EXISTS', KEY.by_type .. f[3]) == 0 then redis.call('SREM', KEY.types_used, f[3]) end
end
for tag in string.gmatch(f[4] or '', '[^,]+') do
  redis.call('ZREM', KEY.by_tag .. tag, id)
  if redis.call('EXISTS', KEY.by_tag .. tag) == 0 then redis.call('SREM', KEY.tags, tag) end
end
if f[12] then
  redis.call('ZREM', KEY.by_project .. f[12], id)
  if redis.call('EXISTS', KEY.by_project .. f[12]) == 0 then redis.call('SREM', KEY.projects, f[12]) end
end
if f[8] then redis.call('ZREM', KEY.secrets_index, id) end
if f[9] then redis.call('HDEL', KEY.webhooks_wanted, id) end
local name = f[10] and string.match(f[10], ' (%S+)$')
if name and entry_of(name) == id then redis.call('HDEL', KEY.unique, name) end
redis.call('DEL', key, KEY.results .. id, KEY.log .. id, KEY.secrets .. id)
if status then audit(ARGV[3]) end
return status and 'ok' or 'gone'
