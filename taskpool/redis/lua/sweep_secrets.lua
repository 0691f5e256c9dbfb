-- Deletes the secrets of tasks whose record is gone (deleted by RQ's tools, expired), with all else that is left of them.
-- In bounded steps through the index of the tasks that have secrets.
--
-- ARGV[1]  the id to go on after ('' = from the start); ARGV[2] how many ids to look at, at most
-- Returns  the id to go on after; '' at the end

local CHUNK = 100
local most = tonumber(ARGV[2])
local ids = redis.call('ZRANGEBYLEX', KEY.secrets_index, ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'LIMIT', 0, most)
for from = 1, #ids, CHUNK do
  local chunk, keys = {}, {}
  for at = from, math.min(from + CHUNK - 1, #ids) do
    chunk[#chunk + 1], keys[#keys + 1] = ids[at], KEY.secrets .. ids[at]
  end
  for _, id in ipairs(without_record(chunk)) do forget(id) end
  if redis.call('EXISTS', unpack(keys)) < #keys then -- they expired, or the task is done
    for at, id in ipairs(chunk) do
      if redis.call('EXISTS', keys[at]) == 0 then redis.call('ZREM', KEY.secrets_index, id) end
    end
  end
end
return #ids < most and '' or ids[#ids]
