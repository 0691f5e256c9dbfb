-- Releases the tasks that wait for an ended task. Those for which it was the last parent are queued. Those of a task
-- that did not end well are canceled, and so are their own dependents, down to the limit of this call. What is left is in
-- the outbox, so a caller that dies in between loses nothing.
--
-- A task that still exists stays in the set `needed` of its parent: it may read the parent's result later.
--
-- ARGV[1]  id of the ended task
-- ARGV[2]  the most tasks that this call releases or cancels
-- Returns  the ids of ended tasks that still have dependents to release: call again with each. Empty: nothing is left, or
--          the task has not ended (a retry by hand revived it), and its dependents keep waiting

local limit = tonumber(ARGV[2])
local now_ms, stamp = clock()
local parents, at = {ARGV[1]}, 1

local function cancel(id, f, parent, parent_status)
  local key, queue, seq = KEY.job .. id, f[2], tonumber(f[3] or 0) + 1
  local why = parent_status
    and string.format('canceled: the task %s it depends on did not end well (%s)', parent, parent_status)
    or string.format('canceled: the task %s it depends on is gone (removed or expired), so its outcome is unknown', parent)
  redis.call('ZREM', KEY.deferred .. queue, id)
  redis.call('ZREM', KEY.expiring, id)
  redis.call('HSET', key, 'status', RQ.canceled, 'ended_at', stamp, 'seq', seq, 'reason', 'dependency_failed',
    'error', why)
  if retain(id, KEY.canceled .. queue, tonumber(f[5]) or KEY.failure_ttl_s, now_ms, f[6]) then table.insert(parents, id) end
  emit(id, seq, EVENT.canceled, STATUS.canceled, now_ms,
    string.format(',"reason":"dependency_failed","dependency":"%s"', parent))
end

local function count_down(id, f)
  local key, queue, seq = KEY.job .. id, f[2], tonumber(f[3] or 0) + 1
  if redis.call('HINCRBY', key, 'pending', -1) > 0 then return end
  redis.call('ZREM', KEY.deferred .. queue, id)
  local moved = moved_ms(f[7])
  if moved then -- Redis's clock was stepped while it waited
    f[4] = string.format('%.0f', f[4] + moved)
    redis.call('HSET', key, 'run_ms', f[4], 'run_clock', clock_base(now_ms))
  end
  if f[6] then keep_secrets(id, f[6], math.max((tonumber(f[4]) or 0) - now_ms, 0)) end
  if f[4] and tonumber(f[4]) > now_ms then
    redis.call('HSET', key, 'status', RQ.scheduled, 'seq', seq)
    schedule(id, queue, tonumber(f[4]), now_ms)
    emit(id, seq, EVENT.scheduled, STATUS.scheduled, now_ms, '')
  else
    redis.call('HSET', key, 'status', RQ.queued, 'enqueued_at', stamp, 'seq', seq)
    enqueue(id, queue, false)
    emit(id, seq, EVENT.queued, STATUS.queued, now_ms, '')
  end
end

-- RQ's word of a task's status; nil when it has no record. One that RQ ran and let expire is still entered among the
-- finished, which only those are that ended well.
local function status_of(id)
  local status = redis.call('HGET', KEY.job .. id, 'status')
  if status then return status, true end
  for _, queue in ipairs(redis.call('SMEMBERS', KEY.queues)) do
    if redis.call('ZSCORE', KEY.finished .. string.sub(queue, #KEY.queue + 1), id) then return RQ.done, false end
  end
  return nil, false
end

local function release(parent, status, has_record)
  local needing = {}
  local ids = redis.call('SPOP', KEY.dependents .. parent, limit)
  limit = limit - #ids
  for _, id in ipairs(ids) do
    local f = redis.call('HMGET', KEY.job .. id, 'status', 'origin', 'seq', 'run_ms', 'failure_ttl', 'secret_ttl',
      'run_clock')
    if f[1] and f[1] ~= RQ.done then table.insert(needing, id) end
    if f[1] == RQ.waiting and status == RQ.done then
      count_down(id, f)
    elseif f[1] == RQ.waiting then
      cancel(id, f, parent, status)
    end
  end
  -- Of a task that did not end well as well: retried by hand, it may still be done.
  if has_record and #needing > 0 then
    redis.call('SADD', KEY.needed .. parent, unpack(needing))
    keep_for_children(parent, status == RQ.done)
  end
end

while at <= #parents and limit > 0 do
  local parent = parents[at]
  local status, has_record = status_of(parent)
  if not status or RQ_SET.terminal[status] then
    release(parent, status, has_record)
    if redis.call('EXISTS', KEY.dependents .. parent) == 1 then break end
  end
  redis.call('SREM', KEY.outbox, parent)
  at = at + 1
end
return {unpack(parents, at)}
