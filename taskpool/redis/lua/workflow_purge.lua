-- Removes an ended workflow whose time is over, in bounded steps: the records of its members become due, and `purge`
-- removes them as all others; behind the last one, the workflow's own keys go.
--
-- ARGV[1]  id
-- ARGV[2]  the most members of this step
-- Returns  'more' | 'end' | 'children' (tasks that wait for it must be released first) | 'early' (its time hasn't come, or a
--          task outside of it may still read how it ended)

local id, key, most = ARGV[1], KEY.workflow .. ARGV[1], tonumber(ARGV[2])
local now_ms = clock()
local score = redis.call('ZSCORE', KEY.workflows_ended, id)
if score and tonumber(score) * 1000 > now_ms then return 'early' end
local f = redis.call('HMGET', key, 'reserved', 'purged', 'project', 'status', 'removed')
if not f[4] then
  redis.call('ZREM', KEY.workflows_ended, id)
  return 'end'
end
if not score then return 'early' end -- it was retried

pass_when_full()
if redis.call('EXISTS', KEY.followers .. id .. ':') == 1 then
  redis.call('SADD', KEY.outbox, id .. ':')
  return 'children'
end
if not f[5] then
  if is_needed(id .. ':', f[4] == STATUS.done) then
    redis.call('ZADD', KEY.workflows_ended, string.format('%.3f', now_ms / 1000 + KEY.held_look_s), id)
    return 'early'
  end
  redis.call('HSET', key, 'removed', 1)
  redis.call('ZREM', KEY.workflows, id)
  if f[3] then redis.call('ZREM', KEY.workflows_of .. f[3], id) end
end
local REGISTRY = RQ_MAP.registry
local first = tonumber(f[2] or 0) + 1
local last = math.min(first + most - 1, tonumber(f[1]))
for number = first, last do
  local member = member_id(id, number)
  local g = redis.call('HMGET', KEY.job .. member, 'status', 'origin')
  local registry = REGISTRY[g[1]]
  if registry then
    redis.call('ZADD', registry .. g[2], 'XX', string.format('%.3f', now_ms / 1000), member)
    redis.call('EXPIRE', KEY.job .. member, KEY.expiry_slack_s)
  end
end
local is_last = last >= tonumber(f[1])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', key .. KEY.workflow_order, '(' .. first - 1, is_last and '+inf' or last)) do
  redis.call('DEL', KEY.needed .. id .. ':' .. name, KEY.revivable .. id .. ':' .. name)
end
if not is_last then
  redis.call('HSET', key, 'purged', last)
  return 'more'
end
redis.call('ZREM', KEY.workflows_ended, id)
redis.call('DEL', key, key .. KEY.workflow_reviving, key .. KEY.workflow_counted, key .. KEY.workflow_nodes,
  key .. KEY.workflow_order, key .. KEY.workflow_expanding, KEY.needed .. id .. ':', KEY.revivable .. id .. ':')
return 'end'
