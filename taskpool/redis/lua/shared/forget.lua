-- What Taskpool keeps of a task outside of its record, for the scripts that clean up after a record that another
-- program deleted (RQ's `Job.delete` and `Queue.empty`, the buttons of dashboards) or that expired.

-- Which of these ids (at most a hundred) have no record.
local function without_record(ids)
  local keys, gone = {}, {}
  for at, id in ipairs(ids) do keys[at] = KEY.job .. id end
  if #ids == 0 or redis.call('EXISTS', unpack(keys)) == #ids then return gone end
  for at, id in ipairs(ids) do
    if redis.call('EXISTS', keys[at]) == 0 then gone[#gone + 1] = id end
  end
  return gone
end

-- One step through an index: the ids after `after` ('' = from the start), at most `most`, in chunks of 100 that
-- `look_at` gets. Returns the id to go on after; '' at the end.
local function walk(index, after, most, look_at)
  local ids = redis.call('ZRANGEBYLEX', index, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, most)
  for from = 1, #ids, 100 do look_at({unpack(ids, from, math.min(from + 99, #ids))}) end
  return #ids < tonumber(most) and '' or ids[#ids]
end

-- Drops what is kept of a task, except for the entries of the indexes that the caller goes through.
local function forget(id)
  redis.call('DEL', KEY.secrets .. id, KEY.results .. id, KEY.log .. id, KEY.checkpoint .. id, KEY.needed .. id,
    KEY.added .. id, KEY.revivable .. id)
  redis.call('ZREM', KEY.held, id)
  redis.call('ZREM', KEY.secrets_index, id)
  redis.call('ZREM', KEY.expiring, id)
  redis.call('ZREM', KEY.confirmations, id)
  redis.call('HDEL', KEY.webhooks_wanted, id)
  -- What waits for it, and what waited and is gone too: the outbox has `release` clear that up.
  if redis.call('EXISTS', KEY.dependents .. id, KEY.followers .. id) > 0 then redis.call('SADD', KEY.outbox, id) end
end
