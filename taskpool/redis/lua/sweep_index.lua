-- Drops the ids of records that are gone (deleted by RQ's tools, expired) from an index by type, tag or project, and what
-- else `purge` would have removed with them. A backstop, in bounded steps round the index.
--
-- KEYS[1]  index: zset of ids, all with score 0
-- ARGV[1]  the id to go on after ('' = from the start); ARGV[2] how many ids to look at, at most
-- Returns  the id to go on after; '' at the end

local CHUNK = 100
local index, most = KEYS[1], tonumber(ARGV[2])
local ids = redis.call('ZRANGEBYLEX', index, ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'LIMIT', 0, most)
for from = 1, #ids, CHUNK do
  local chunk = {unpack(ids, from, math.min(from + CHUNK - 1, #ids))}
  for _, id in ipairs(without_record(chunk)) do
    redis.call('ZREM', index, id)
    forget(id)
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
return #ids < most and '' or ids[#ids]
