-- Has the default answer count for a task that waits for a person, if its time is over. A question without one is
-- answered with a timeout.
--
-- ARGV[1]  id
-- Returns  'ok' | 'children' (it is rejected, and tasks that wait for it are in the outbox) | 'early' (also when its time
--          was to be corrected after a step of the clock) | 'gone' (it is asked no more: the entry is dropped)

local move, gate, decision = moves(), gates(), decisions()
local id = ARGV[1]
if not redis.call('ZSCORE', KEY.confirmations, id) then return 'gone' end

local f = move.record(id, 'status', 'failure_ttl', 'log', 'answer_by_ms', 'asked_clock', 'question',
  'answers', unpack(gate.FIELDS))
if f.status ~= RQ.waiting_confirmation or not f.asked_ms then
  redis.call('ZREM', KEY.confirmations, id)
  return 'gone'
end

local now_ms, stamp = clock()
local due_ms = (tonumber(f.answer_by_ms) or 0) + (moved_ms(f.asked_clock) or 0)
if due_ms > now_ms then
  local until_ms = string.format('%.0f', due_ms)
  redis.call('ZADD', KEY.confirmations, string.format('%.3f', due_ms / 1000), id)
  redis.call('HSET', KEY.job .. id, 'answer_by_ms', until_ms, 'asked_clock', clock_base(now_ms))
  return 'early'
end
pass_when_full()
if f.question then
  local default = gate.read(f.question).default_json
  decision.resume(id, f, default and 'default' or 'timeout', default or 'null', {}, now_ms, stamp)
  return 'ok'
end
local is_confirmed = gate.read(f.confirm).default == 'confirm'
return decision.decide(id, f, is_confirmed, {by_default = true}, now_ms, stamp) and 'children' or 'ok'
