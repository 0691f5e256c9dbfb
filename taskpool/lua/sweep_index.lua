-- Drops the ids of records that are gone (deleted in a dashboard, expired) from an index by type or tag, and what else
-- `purge` would have removed with them. A backstop, in bounded steps round the index.
--
-- KEYS[1]  index: zset of ids, all with score 0
-- ARGV[1]  the id to go on after ('' = from the start); ARGV[2] at most so many
-- Returns  the id to go on after; '' at the end

local index = KEYS[1]
local ids = redis.call('ZRANGEBYLEX', index, ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'LIMIT', 0, ARGV[2])
for _, id in ipairs(ids) do
  if redis.call('EXISTS', KEY.job .. id) == 0 then
    redis.call('ZREM', index, id)
    redis.call('DEL', KEY.results .. id, KEY.log .. id)
    redis.call('HDEL', KEY.webhooks_wanted, id)
    -- What waits for it, and what waited and is gone too: the outbox has `release` clear that up.
    if redis.call('EXISTS', KEY.dependents .. id) == 1 then redis.call('SADD', KEY.outbox, id) end
  end
end
if redis.call('EXISTS', index) == 0 then
  if string.find(index, KEY.by_tag, 1, true) == 1 then redis.call('SREM', KEY.tags, string.sub(index, #KEY.by_tag + 1)) end
  if string.find(index, KEY.by_project, 1, true) == 1 then
    redis.call('SREM', KEY.projects, string.sub(index, #KEY.by_project + 1))
  end
  if string.find(index, KEY.by_type, 1, true) == 1 then
    redis.call('SREM', KEY.types_used, string.sub(index, #KEY.by_type + 1))
  end
end
return #ids < tonumber(ARGV[2]) and '' or ids[#ids]
