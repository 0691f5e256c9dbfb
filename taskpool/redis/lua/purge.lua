-- Removes an ended task: its record, log, results and every index entry. Repeating it changes nothing.
--
-- ARGV[1]  id
-- ARGV[2]  '' = now; the key of a registry, or of the records that are held for others: only when its time there has come
-- ARGV[3]  entry of the audit; '' = none
-- ARGV[4]  the mark of a call that can be undone (by unpurge.lua): the record is hidden, and kept for KEY.trash_s; '' = it
--          can't
-- ARGV[5]  the program that goes on with the operation of this mark; nil = there is none
-- Returns  'ok' | 'early' | 'gone' (only left-overs were dropped) | 'children' (tasks that wait for it must be
--          released first) | 'needed' (its time has come, but a task that depends on it may still read its outcome) |
--          'lost' (another program goes on with the operation, or it has ended) | RQ's word of the status that doesn't
--          allow it

local move = moves()
local id, registry = ARGV[1], ARGV[2]
local driver = ARGV[5] ~= '' and ARGV[5] or nil
if driver and rarely().work_of(ARGV[4], driver).is_lost() then return 'lost' end
local key = KEY.job .. id
local f = move.record(id, 'status', 'origin', 'type', 'tags', 'ended_at', 'seq', 'failure_ttl', 'secret_ttl',
  'callback_url', 'unique', 'log', 'project', 'canceled_by', 'workflow')
local status = f.status
if ARGV[4] ~= '' and redis.call('HGET', KEY.trash .. key, 'trashed_by') == ARGV[4] then return 'ok' end
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
if registry ~= '' and registry ~= KEY.held and status == RQ.canceled and (f.ended_at or '') == '' and not is_foreign then
  local seq = tonumber(f.seq or 0) + 1
  redis.call('ZREM', KEY.expiring, id)
  redis.call('ZREM', KEY.confirmations, id)
  redis.call('HSET', key, 'ended_at', stamp, 'seq', seq, 'reason', STATUS.canceled, 'error', KEY.not_started)
  retain(id, registry, tonumber(f.failure_ttl) or KEY.failure_ttl_s, now_ms, f.secret_ttl, f.log, f.workflow)
  emit(id, seq, EVENT.canceled, STATUS.canceled, now_ms, ',"reason":"' .. STATUS.canceled .. '"')
  tally(STATUS.canceled, f.type, f.origin, nil, now_ms)
  if f.workflow then members().count(id, f.workflow, now_ms, stamp) end
  return 'early'
end

-- Whether its record is still needed. Then it is looked at again later.
local function is_kept()
  local is_kept, is_sure = is_needed(id, status == RQ.done)
  if is_sure then
    -- RQ's maintenance drops entries whose time is over: it must not be the last way to the record.
    if registry ~= KEY.held then redis.call('ZADD', registry, '+inf', id) end
    redis.call('ZADD', KEY.held, string.format('%.3f', now_ms / 1000 + KEY.held_look_s), id)
    redis.call('PERSIST', key)
  end
  return is_kept
end

-- Of a record that is gone, the entry in the registry tells how it ended: it stays until the dependents are released.
if status or registry ~= '' then
  local revivable = KEY.revivable .. id -- one that is done has still to revive those that were canceled because of it
  local waiting = KEY.dependents .. id
  if redis.call('EXISTS', waiting, KEY.followers .. id, status == RQ.done and revivable or waiting) > 0 then
    return 'children'
  end
  if registry ~= '' and status and redis.call('EXISTS', KEY.needed .. id) == 1 and is_kept() then return 'needed' end
end

-- A record that is no longer needed, and whose time hasn't come, expires as any other. So does another program's, which
-- RQ would have let expire by now.
if registry == KEY.held and status then
  redis.call('ZREM', KEY.held, id)
  local left_s = is_foreign and KEY.expiry_slack_s
  for _, place in ipairs({KEY.finished, KEY.failed, KEY.canceled}) do
    local ends_s = tonumber(redis.call('ZSCORE', place .. (f.origin or ''), id))
    if ends_s and ends_s < math.huge and ends_s * 1000 > now_ms then
      left_s = math.ceil(ends_s - now_ms / 1000) + KEY.expiry_slack_s
    end
  end
  if left_s then
    redis.call('EXPIRE', key, left_s)
    redis.call('EXPIRE', KEY.results .. id, left_s)
    return 'early'
  end
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
local is_hidden = status and ARGV[4] ~= ''
local ends_s = is_hidden and redis.call('ZSCORE', RQ_MAP.registry[status] .. f.origin, id)
if status then
  redis.call('ZREM', KEY.finished .. f.origin, id)
  redis.call('ZREM', KEY.failed .. f.origin, id)
  redis.call('ZREM', KEY.canceled .. f.origin, id)
end
if f.type then move.leave_index(KEY.by_type, f.type, KEY.types_used, id) end
for tag in string.gmatch(f.tags or '', '[^,]+') do move.leave_index(KEY.by_tag, tag, KEY.tags, id) end
if f.project then move.leave_index(KEY.by_project, f.project, KEY.projects, id) end
if f.secret_ttl then redis.call('ZREM', KEY.secrets_index, id) end
local wanted = f.callback_url and redis.call('HGET', KEY.webhooks_wanted, id)
if wanted then redis.call('HDEL', KEY.webhooks_wanted, id) end
local name = f.unique and string.match(f.unique, ' (%S+)$')
local holder, until_ms = nil, nil
if name then holder, until_ms = unique_keys().entry_of(name) end
if holder == id then redis.call('HDEL', KEY.unique, name) end
local look_s = is_hidden and redis.call('ZSCORE', KEY.held, id)
redis.call('ZREM', KEY.held, id)
if f.canceled_by then redis.call('SREM', KEY.revivable .. f.canceled_by, id) end
if is_hidden then
  redis.call('HSET', key, 'trashed_by', ARGV[4], 'trashed_until', ends_s or string.format('%.3f', now_ms / 1000),
    'trashed_wanted', wanted or '', 'trashed_held', look_s or '',
    'trashed_unique', holder == id and until_ms and string.format('%.0f', until_ms) or '')
  if driver then redis.call('HINCRBY', KEY.operation .. ARGV[4], 'changed', 1) end
end
for _, each in ipairs(keys_of_record(id)) do
  if is_hidden and redis.call('EXISTS', each) == 1 then
    redis.call('RENAME', each, KEY.trash .. each)
    redis.call('EXPIRE', KEY.trash .. each, KEY.trash_s)
  else
    redis.call('DEL', each)
    if is_hidden then redis.call('DEL', KEY.trash .. each) end -- of a former task with this id
  end
end
if status then audit(KEY.audit_tasks, ARGV[3]) end
return status and 'ok' or 'gone'
