-- Drops the ids of records that are gone (deleted in a dashboard, expired) from an index by type or tag. A backstop, in
-- bounded steps round the index.
--
-- KEYS[1]  index: zset of ids, all with score 0
-- ARGV[1]  the id to go on after ('' = from the start); ARGV[2] at most so many
-- Returns  the id to go on after; '' at the end

local ids = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'LIMIT', 0, ARGV[2])
for _, id in ipairs(ids) do
  if redis.call('EXISTS', KEY.job .. id) == 0 then redis.call('ZREM', KEYS[1], id) end
end
return #ids < tonumber(ARGV[2]) and '' or ids[#ids]
