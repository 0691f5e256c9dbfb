-- Releases the tasks that wait for an ended task. Those for which it was the last parent are queued. Those of a task
-- that did not end well are canceled, and so are their own dependents, down to the limit of this call. What is left is
-- in the outbox, so a caller that dies in between loses nothing.
--
-- A task that still exists stays in the set `needed` of its parent: it may read the parent's result later.
--
-- ARGV[1]  id of the ended task
-- ARGV[2]  the most tasks that this call releases or cancels
-- Needs    steps
-- Returns  the ids of ended tasks that still have dependents to release: call again with each. Empty: nothing is left, or
--          the task has not ended (a retry by hand revived it), and its dependents keep waiting

local move = moves()
local limit = tonumber(ARGV[2])
local now_ms, stamp = clock()
local parents, at = {ARGV[1]}, 1

local function cancel(id, f, parent, parent_status)
  local why = parent_status
    and string.format('canceled: the task %s it depends on did not end well (%s)', parent, parent_status)
    or string.format('canceled: the task %s it depends on is gone (removed or expired), so its outcome is unknown', parent)
  local more = ',"dependency":"' .. parent .. '"'
  if move.cancel_task(id, f, 'dependency_failed', why, more, now_ms, stamp) then table.insert(parents, id) end
end

local function count_down(id, f)
  local key, queue, run_ms = KEY.job .. id, f.origin, tonumber(f.run_ms)
  if redis.call('HINCRBY', key, 'pending', -1) > 0 then return end
  redis.call('ZREM', KEY.deferred .. queue, id)
  local moved = moved_ms(f.run_clock)
  if moved then -- Redis's clock was stepped while it waited
    run_ms = run_ms + moved
    redis.call('HSET', key, 'run_ms', string.format('%.0f', run_ms), 'run_clock', clock_base(now_ms))
  end
  if f.secret_ttl then move.keep_secrets(id, f.secret_ttl, math.max((run_ms or 0) - now_ms, 0)) end
  if run_ms and run_ms > now_ms then
    move.schedule_task(id, queue, f.seq, run_ms, EVENT.scheduled, '', now_ms)
  else
    move.queue_task(id, queue, f.seq, false, EVENT.queued, '', now_ms, stamp)
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
    local f = move.record(id, 'status', 'origin', 'seq', 'run_ms', 'failure_ttl', 'secret_ttl', 'run_clock')
    if f.status and f.status ~= RQ.done then table.insert(needing, id) end
    if f.status == RQ.waiting and status == RQ.done then
      count_down(id, f)
    elseif f.status == RQ.waiting then
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
