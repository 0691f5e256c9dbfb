-- Finds waiting tasks whose parents ended without a word to the outbox (run by a plain RQ worker, or by a pool of the
-- release before, which knows no followers; deleted in a dashboard, expired) and puts those parents into it. A backstop.
-- Each call is one bounded step round the queue's waiting tasks. It goes on where the last step of any pool ended: a
-- task's place in the registry, and a place in its list of parents. A parent that is done and was released by a pool of
-- the release before is kept for the task from here on.
--
-- ARGV[1]  queue; ARGV[2] the most tasks and parents that it reads
-- Returns  'more' | 'end' (the next step begins at the start)

local move, edge = moves(), edges()
local queue, limit = ARGV[1], tonumber(ARGV[2])
local registry = KEY.deferred .. queue
if redis.call('EXISTS', registry) == 0 then return 'end' end

pass_when_full()
local now_ms = clock()
local offset, from = string.match(redis.call('GET', KEY.swept .. queue) or '', '^(%d+) (%d+)$')
offset, from = tonumber(offset or 0), tonumber(from or 1)
local ids = redis.call('ZRANGE', registry, offset, offset + KEY.swept_tasks - 1)

local function look_at(parent, id, now_ms)
  local outcome, word = edge.outcome_of(parent.ref)
  if not outcome or word == RQ.failed and is_to_be_judged(parent.ref) then return end
  local place, member = edge.place_of(parent, id)
  if redis.call('SISMEMBER', place, member) == 1 then
    redis.call('SADD', KEY.outbox, parent.ref)
  elseif word == RQ.done and redis.call('SADD', KEY.needed .. parent.ref, id) == 1 then
    hold(parent.ref, now_ms)
  end
end

-- Where a task with one of these statuses stands, or one without a record, it is an entry of a former life. A status
-- that isn't known here may be another release's.
local NOT_DEFERRED = RQ_SET.not_deferred

for _, id in ipairs(ids) do
  if limit <= 0 then break end
  limit = limit - 1
  local f = move.record(id, 'status', 'dependency_ids', 'edges', 'pending', 'asked_ms')
  if not f.status or NOT_DEFERRED[f.status] then
    redis.call('ZREM', registry, id)
    from = 1
  else
    local is_waiting = f.status == RQ.waiting and f.pending and not f.asked_ms -- for other tasks, not for a person
    local parents = is_waiting and edge.list_of(f.dependency_ids, f.edges) or {}
    while from <= #parents and limit > 0 do
      look_at(parents[from], id, now_ms)
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
