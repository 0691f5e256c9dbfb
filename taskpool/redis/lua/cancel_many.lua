-- Cancels tasks that haven't started, several at once.
--
-- ARGV[1]  mark of the call, by which a task is known that it has canceled
-- ARGV[2]  error: one readable line
-- ARGV[3]  JSON: where to look in queues, as the last call returned it; '{}' at first
-- ARGV[4]  the program that goes on with the operation of this mark; '' = there is none
-- ARGV[5+] ids
-- Returns  {the same for the next call, a word for each of the first ids: as `cancel.lua`, 'lost' (another program goes on
--          with the operation, or it has ended) or 'unreadable'. The others are left to the next call.}

local move, work = moves(), work_of(ARGV[1], ARGV[4])
local is_lost = work.is_lost()
local queues = taker(cjson.decode(ARGV[3]))
local now_ms, stamp = clock()

-- Notes what the cancelation takes and an undo gives back: the error of its last attempt, and until when it holds a unique
-- key that is held for a time.
local function keep(id, f)
  if f.error then redis.call('HSET', KEY.job .. id, 'error_before', f.error) end
  local name = f.unique and string.match(f.unique, '^time%S* (%S+)$')
  local holder, until_ms = nil, nil
  if name then holder, until_ms = unique_keys().entry_of(name) end
  if holder == id and until_ms then redis.call('HSET', KEY.job .. id, 'unique_ms', string.format('%.0f', until_ms)) end
end

local function cancel(id)
  if is_lost then return 'lost' end
  local f = move.record(id, 'status', 'origin', 'seq', 'failure_ttl', 'by_call', 'operations', 'secret_ttl', 'log',
    'question', 'unique', 'error')
  if not f.status then
    redis.call('ZREM', KEY.expiring, id)
    return 'gone'
  end
  if work.has_changed(f) then return redis.call('SISMEMBER', KEY.outbox, id) == 1 and 'children' or 'ok' end
  if not RQ_SET.cancelable[f.status] then return f.status end
  if f.status == RQ.queued then
    local is_there = queues.find(f.origin, id)
    if is_there == nil then return nil end
    if is_there then queues.take(f.origin, id) end
  end
  local error = f.question and KEY.not_answered or ARGV[2]
  local has_children = move.cancel_task(id, f, STATUS.canceled, error, '', now_ms, stamp)
  redis.call('HSET', KEY.job .. id, work.fields(f))
  keep(id, f)
  return has_children and 'children' or 'ok'
end

return queues.change_each(5, cancel)
