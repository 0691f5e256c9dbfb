-- Deletes the secrets of tasks whose record is gone (deleted by RQ's tools, expired), with all else that is left of
-- them. In bounded steps through the index of the tasks that have secrets.
--
-- ARGV[1]  the id to go on after ('' = from the start); ARGV[2] how many ids to look at, at most
-- Returns  the id to go on after; '' at the end

return walk(KEY.secrets_index, ARGV[1], ARGV[2], function(ids)
  for _, id in ipairs(without_record(ids)) do forget(id) end
  local keys = {}
  for at, id in ipairs(ids) do keys[at] = KEY.secrets .. id end
  if redis.call('EXISTS', unpack(keys)) == #keys then return end
  for at, id in ipairs(ids) do -- the secrets expired, or the task is done
    if redis.call('EXISTS', keys[at]) == 0 then redis.call('ZREM', KEY.secrets_index, id) end
  end
end)
