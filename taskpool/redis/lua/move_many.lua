-- Moves tasks that haven't started to another queue, several at once: to its tail, those that are queued. That is no step
-- of the tasks, so there is no event: a message on the task's channel tells those who know its queue.
--
-- ARGV[1]  mark of the call, by which a task is known that it has moved
-- ARGV[2]  the queue
-- ARGV[3]  JSON: where to look in queues, as the last call returned it; '{}' at first
-- ARGV[4]  the program that goes on with the operation of this mark; '' = there is none
-- ARGV[5+] ids
-- Returns  {the same for the next call, a word for each of the first ids. The others are left to the next call.}
--          'ok' (also when sent again) | 'same' (it is there) | 'gone' | 'foreign' (it is another program's) | 'taken' (a
--          plain RQ worker is about to start it) | 'unreadable' | 'lost' (another program goes on with the operation, or it has
--          ended) | RQ's word of the status that doesn't allow it

local move, work, target = moves(), work_of(ARGV[1], ARGV[4]), ARGV[2]
local is_lost = work.is_lost()
local queues = taker(cjson.decode(ARGV[3]))

local function tell(id)
  redis.call('PUBLISH', KEY.channel .. id, '{"id":"' .. id .. '","moved_to":"' .. target .. '"}')
  return 'ok'
end

local function shift(id)
  if is_lost then return 'lost' end
  local f = move.record(id, 'status', 'origin', 'type', 'by_call', 'operations')
  if not f.status then return 'gone' end
  if work.has_changed(f) then return 'ok' end
  if not RQ_SET.cancelable[f.status] then return f.status end
  if not f.type then return 'foreign' end
  if f.origin == target then return 'same' end
  if f.status == RQ.queued then
    local is_there = queues.find(f.origin, id)
    if not is_there then return is_there == false and 'taken' or nil end
    queues.take(f.origin, id)
    redis.call('HSET', KEY.job .. id, 'origin', target, work.fields(f))
    enqueue(id, target, false)
    return tell(id)
  end
  local registry = f.status == RQ.scheduled and KEY.scheduled or KEY.deferred
  local score = redis.call('ZSCORE', registry .. f.origin, id)
  if not score then return 'taken' end
  redis.call('ZREM', registry .. f.origin, id)
  redis.call('ZADD', registry .. target, score, id)
  redis.call('SADD', KEY.queues, KEY.queue .. target)
  redis.call('HSET', KEY.job .. id, 'origin', target, work.fields(f))
  return tell(id)
end

return queues.change_each(5, shift)
