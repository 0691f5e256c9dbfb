-- Cancels tasks that haven't started, several at once.
--
-- ARGV[1]  mark of the call, by which a task is known that it has canceled
-- ARGV[2]  error: one readable line
-- ARGV[3]  JSON: where to look in queues, as the last call returned it; '{}' at first
-- ARGV[4+] ids
-- Returns  {the same for the next call, a word for each of the first ids: as `cancel.lua`, or 'unreadable'. The others are
--          left to the next call.}

local move, mark = moves(), ARGV[1]
local queues = taker(cjson.decode(ARGV[3]))
local now_ms, stamp = clock()

local function cancel(id)
  local f = move.record(id, 'status', 'origin', 'seq', 'failure_ttl', 'by_call', 'secret_ttl', 'log', 'question')
  if not f.status then return 'gone' end
  if f.status == RQ.canceled and f.by_call == mark then
    return redis.call('SISMEMBER', KEY.outbox, id) == 1 and 'children' or 'ok'
  end
  if not RQ_SET.cancelable[f.status] then return f.status end
  if f.status == RQ.queued then
    local is_there = queues.find(f.origin, id)
    if is_there == nil then return nil end
    if is_there then queues.take(f.origin, id) end
  end
  local error = f.question and KEY.not_answered or ARGV[2]
  local has_children = move.cancel_task(id, f, STATUS.canceled, error, '', now_ms, stamp)
  redis.call('HSET', KEY.job .. id, 'by_call', mark)
  return has_children and 'children' or 'ok'
end

return queues.change_each(4, cancel)
