-- Removes an ended task: its record, log, results and every index entry. Repeating it changes nothing.
--
-- ARGV[1]  id
-- ARGV[2]  '' = now; a registry's key: only when its time in there has come
-- ARGV[3]  entry of the audit; '' = none
-- Needs    unique, foreign
-- Returns  'ok' | 'early' | 'gone' (only left-overs were dropped) | 'children' (tasks that wait for it must be
--          released first) | 'needed' (its time has come, but a task that depends on it may still read its result) |
--          RQ's word of the status that doesn't allow it

local move = moves()
local id, registry = ARGV[1], ARGV[2]
local key = KEY.job .. id
local f = move.record(id, 'status', 'origin', 'type', 'tags', 'ended_at', 'seq', 'failure_ttl', 'secret_ttl',
  'callback_url', 'unique', 'log', 'project', 'held_ms')
local status = f.status
local now_ms, stamp = clock()
if registry ~= '' then
  local score = redis.call('ZSCORE', registry, id)
  if score and tonumber(score) * 1000 > now_ms then return 'early' end
end
if status and not RQ_SET.terminal[status] then
  -- What stands there is of a former life. (A status that isn't known here may be another release's for an end.)
  local is_live = RQ_SET.cancelable[status] or status == RQ.in_progress
  if registry ~= '' and is_live then redis.call('ZREM', registry, id) end
  return status
end

-- A job of another program, which no worker of ours has run, is RQ's: its record is left as it is.
local is_foreign = registry ~= '' and status and not f.type and not foreign_jobs().is_task(id, nil, '')

-- RQ's own cancel enters a job as due at once and does nothing more. It is kept, and has an event, like one that we
-- canceled.
if registry ~= '' and status == RQ.canceled and (f.ended_at or '') == '' and not is_foreign then
  local seq = tonumber(f.seq or 0) + 1
  redis.call('ZREM', KEY.expiring, id)
  redis.call('HSET', key, 'ended_at', stamp, 'seq', seq, 'reason', STATUS.canceled, 'error', KEY.not_started)
  retain(id, registry, tonumber(f.failure_ttl) or KEY.failure_ttl_s, now_ms, f.secret_ttl, f.log)
  emit(id, seq, EVENT.canceled, STATUS.canceled, now_ms, ',"reason":"' .. STATUS.canceled .. '"')
  return 'early'
end

-- Whether a task that isn't done yet depends on this one. Drops those that are done or gone, in bounded steps. A record
-- that is needed is looked at again later, and kept no longer than KEY.held_most_s beyond its own time.
local function is_needed()
  local needed, is_one_left = KEY.needed .. id, false
  pass_when_full()
  for _, child in ipairs(redis.call('SSCAN', needed, 0, 'COUNT', KEY.needed_step)[2]) do
    local child_status = redis.call('HGET', KEY.job .. child, 'status')
    if child_status and child_status ~= RQ.done then
      is_one_left = true
    else
      redis.call('SREM', needed, child)
    end
  end
  if not is_one_left then return redis.call('EXISTS', needed) == 1 end

  local held_ms = tonumber(f.held_ms) or now_ms
  if now_ms - held_ms >= KEY.held_most_s * 1000 then return false end
  redis.call('HSET', key, 'held_ms', string.format('%.0f', held_ms))
  redis.call('ZADD', registry, string.format('%.3f', now_ms / 1000 + KEY.held_look_s), id)
  redis.call('EXPIRE', key, KEY.held_most_s)
  redis.call('EXPIRE', needed, KEY.held_most_s)
  return true
end

-- Of a record that is gone, the entry in the registry tells how it ended: it stays until the dependents are released.
if (status or registry ~= '') and redis.call('EXISTS', KEY.dependents .. id, KEY.needed .. id) > 0 then
  if redis.call('EXISTS', KEY.dependents .. id) == 1 then return 'children' end
  if registry ~= '' and status == RQ.done and is_needed() then return 'needed' end
end

-- RQ keeps a canceled job for ever, with an entry that is due at once: it is put behind all that is due. RQ's
-- maintenance drops other entries whose time is over, and so do we.
if is_foreign and status == RQ.canceled then
  redis.call('ZADD', registry, '+inf', id)
  return 'early'
end
if registry ~= '' then redis.call('ZREM', registry, id) end
if is_foreign then
  redis.call('DEL', KEY.needed .. id)
  return 'gone'
end
if status then
  redis.call('ZREM', KEY.finished .. f.origin, id)
  redis.call('ZREM', KEY.failed .. f.origin, id)
  redis.call('ZREM', KEY.canceled .. f.origin, id)
end
if f.type then move.leave_index(KEY.by_type, f.type, KEY.types_used, id) end
for tag in string.gmatch(f.tags or '', '[^,]+') do move.leave_index(KEY.by_tag, tag, KEY.tags, id) end
if f.project then move.leave_index(KEY.by_project, f.project, KEY.projects, id) end
if f.secret_ttl then redis.call('ZREM', KEY.secrets_index, id) end
if f.callback_url then redis.call('HDEL', KEY.webhooks_wanted, id) end
local name = f.unique and string.match(f.unique, ' (%S+)$')
if name and unique_keys().entry_of(name) == id then redis.call('HDEL', KEY.unique, name) end
redis.call('DEL', key, KEY.results .. id, KEY.log .. id, KEY.secrets .. id, KEY.needed .. id)
if status then audit(KEY.audit_tasks, ARGV[3]) end
return status and 'ok' or 'gone'
