-- Finds waiting tasks whose parents ended without a word to the outbox (run by a plain RQ worker, deleted in a
-- dashboard, expired) and puts those parents into it. A backstop. Each call is one bounded step round the queue's
-- waiting tasks. It goes on where the last step of any pool ended: a task's place in the registry, and a place in its
-- list of parents. A parent that is done and was released by a pool of the release before is kept for the task from
-- here on.
--
-- ARGV[1]  queue; ARGV[2] the most tasks and parents that it reads
-- Returns  'more' | 'end' (the next step begins at the start)

local move = moves()
local queue, limit = ARGV[1], tonumber(ARGV[2])
local registry = KEY.deferred .. queue
if redis.call('EXISTS', registry) == 0 then return 'end' end

pass_when_full()
local offset, from = string.match(redis.call('GET', KEY.swept .. queue) or '', '^(%d+) (%d+)$')
offset, from = tonumber(offset or 0), tonumber(from or 1)
local ids = redis.call('ZRANGE', registry, offset, offset + KEY.swept_tasks - 1)

-- Whether a plain RQ worker has just failed a task. It may not have been able to read it: then `judge` schedules it
-- again.
local function is_to_be_judged(parent)
  local f = redis.call('HMGET', KEY.job .. parent, 'reason', 'rq_failure', 'failure_ttl', 'origin')
  if f[1] or f[2] or not tonumber(f[3]) or tonumber(f[3]) < 0 then return false end
  local expires_s = redis.call('ZSCORE', KEY.failed .. f[4], parent)
  return expires_s and clock() / 1000 < expires_s - f[3] + KEY.judged_s
end

local function look_at(parent, id)
  local status = redis.call('HGET', KEY.job .. parent, 'status')
  if status == RQ.failed and is_to_be_judged(parent) then return end
  if status and not RQ_SET.terminal[status] then return end
  if redis.call('SISMEMBER', KEY.dependents .. parent, id) == 1 then
    redis.call('SADD', KEY.outbox, parent)
  elseif status == RQ.done and redis.call('SADD', KEY.needed .. parent, id) == 1 then
    keep_for_children(parent, true)
  end
end

-- Where a task with one of these statuses stands, or one without a record, it is an entry of a former life. A status
-- that isn't known here may be another release's.
local NOT_DEFERRED = RQ_SET.not_deferred

for _, id in ipairs(ids) do
  if limit <= 0 then break end
  limit = limit - 1
  local f = move.record(id, 'status', 'dependency_ids', 'pending')
  if not f.status or NOT_DEFERRED[f.status] then
    redis.call('ZREM', registry, id)
    from = 1
  else
    local parents = f.status == RQ.waiting and f.pending and move.ids_in(f.dependency_ids) or {}
    while from <= #parents and limit > 0 do
      look_at(parents[from], id)
      limit, from = limit - 1, from + 1
    end
    if from <= #parents then break end
    offset, from = offset + 1, 1
  end
end

if offset >= redis.call('ZCARD', registry) then
  redis.call('DEL', KEY.swept .. queue)
  return 'end'
end
redis.call('SET', KEY.swept .. queue, string.format('%d %d', offset, from), 'EX', KEY.swept_ttl_s)
return 'more'
