-- Finds waiting tasks whose parents ended without telling the outbox (run by a plain RQ worker, deleted in a
-- dashboard, expired) and puts those parents into it. A backstop, in bounded steps round the registry.
--
-- ARGV[1]  queue; ARGV[2] offset; ARGV[3] at most so many tasks
-- Returns  the offset to go on from; 0 at the end

local queue, offset, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local ids = redis.call('ZRANGE', KEY.deferred .. queue, offset, offset + limit - 1)
if #ids > 0 then pass_when_full() end
for _, id in ipairs(ids) do
  local f = redis.call('HMGET', KEY.job .. id, 'status', 'dependency_ids', 'pending')
  if f[1] ~= 'deferred' then
    redis.call('ZREM', KEY.deferred .. queue, id)
  elseif f[3] and f[2] then
    for parent in string.gmatch(f[2], '"([%w_-]+)"') do
      local status = redis.call('HGET', KEY.job .. parent, 'status') or 'gone'
      local ended = status == 'finished' or status == 'failed' or status == 'stopped' or status == 'canceled'
      if (ended or status == 'gone') and redis.call('SISMEMBER', KEY.dependents .. parent, id) == 1 then
        redis.call('SADD', KEY.outbox, parent)
      end
    end
  end
end
return #ids < limit and 0 or offset + limit
