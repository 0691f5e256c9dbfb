-- Drops the ids of records that are gone (deleted by RQ's tools, expired) from an index by type, tag or project, and
-- what else `purge` would have removed with them. A backstop, in bounded steps round the index.
--
-- KEYS[1]  index: zset of ids, all with score 0
-- ARGV[1]  the id to go on after ('' = from the start); ARGV[2] how many ids to look at, at most
-- Returns  the id to go on after; '' at the end

local index = KEYS[1]
local next_id = walk(index, ARGV[1], ARGV[2], function(ids)
  for _, id in ipairs(without_record(ids)) do
    redis.call('ZREM', index, id)
    forget(id)
  end
end)
local NAMES = {[KEY.by_tag] = KEY.tags, [KEY.by_project] = KEY.projects, [KEY.by_type] = KEY.types_used}
if redis.call('EXISTS', index) == 0 then
  for prefix, names in pairs(NAMES) do
    local name = string.sub(index, 1, #prefix) == prefix and string.sub(index, #prefix + 1)
    if name and not (names == KEY.types_used and is_submitted_now(name)) then redis.call('SREM', names, name) end
  end
end
return next_id
