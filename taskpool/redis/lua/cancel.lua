-- Cancels a task that hasn't started.
--
-- ARGV[1]  id
-- ARGV[2]  reason: canceled | expired
-- ARGV[3]  error: one readable line
-- ARGV[4]  mark of this call, by which it is known when it is sent again; '' = none
-- ARGV[5]  entry of the audit; '' = none
-- Returns  'ok' | 'children' (it is canceled, and tasks that wait for it are in the outbox) (both also when sent again) | 'early' (expired was asked, but it isn't, or was started in time) | 'gone' |
--          RQ's word of the status that doesn't allow it

local id, reason, mark = ARGV[1], ARGV[2], ARGV[4]
local key = KEY.job .. id
local f = redis.call('HMGET', key, 'status', 'origin', 'seq', 'failure_ttl', 'expires_ms', 'started_at', 'by_call',
  'secret_ttl', 'log', 'expires_clock')
local status, queue = f[1], f[2]
if not status then
  redis.call('ZREM', KEY.expiring, id)
  return 'gone'
end
if not RQ_SET.cancelable[status] then
  if reason == 'expired' then redis.call('ZREM', KEY.expiring, id) end
  if status ~= RQ.canceled or f[7] ~= mark then return status end
  return redis.call('EXISTS', KEY.dependents .. id) == 1 and 'children' or 'ok'
end

local now_ms, stamp = clock()
if reason == 'expired' and (f[6] or not f[5] or expiry_of(f[5], f[10]) > now_ms) then return 'early' end

local seq = tonumber(f[3] or 0) + 1
-- What expires is near the head, what a person takes back is near the tail.
if status == RQ.queued then redis.call('LREM', KEY.queue .. queue, reason == 'expired' and 1 or -1, id) end
redis.call('ZREM', KEY.scheduled .. queue, id)
redis.call('ZREM', KEY.deferred .. queue, id)
redis.call('ZREM', KEY.expiring, id)
redis.call('HSET', key, 'status', RQ.canceled, 'ended_at', stamp, 'seq', seq, 'reason', reason, 'error', ARGV[3])
if mark ~= '' then redis.call('HSET', key, 'by_call', mark) end
local children = retain(id, KEY.canceled .. queue, tonumber(f[4]) or KEY.failure_ttl_s, now_ms, f[8], f[9])
emit(id, seq, EVENT.canceled, STATUS.canceled, now_ms, ',"reason":"' .. reason .. '"')
audit(KEY.audit_tasks, ARGV[5])
return children and 'children' or 'ok'
