-- Cancels a task that hasn't started.
--
-- ARGV[1]  id
-- ARGV[2]  reason: canceled | expired | workflow_stopped
-- ARGV[3]  error: one readable line
-- ARGV[4]  mark of this call, which tells when it is sent again; '' = none
-- ARGV[5]  entry of the audit; '' = none
-- Returns  'ok' | 'children' (it is canceled, and tasks that wait for it are in the outbox); both also when sent again
--          'early' (reason expired: it hasn't expired, or was started in time) | 'gone' |
--          RQ's word of the status that doesn't allow it

local move = moves()
local id, reason, mark = ARGV[1], ARGV[2], ARGV[4]
local f = move.record(id, 'status', 'origin', 'seq', 'failure_ttl', 'expires_ms', 'started_at', 'by_call',
  'secret_ttl', 'log', 'expires_clock', 'question')
if not RQ_SET.cancelable[f.status] then
  if reason == 'expired' or not f.status then redis.call('ZREM', KEY.expiring, id) end
  if not f.status then return 'gone' end
  if f.status ~= RQ.canceled or f.by_call ~= mark then return f.status end
  return redis.call('SISMEMBER', KEY.outbox, id) == 1 and 'children' or 'ok'
end

local now_ms, stamp = clock()
if reason == 'expired' and (f.started_at or not f.expires_ms or expiry_of(f.expires_ms, f.expires_clock) > now_ms) then
  return 'early'
end

-- A task that expires is near the head, one that a person takes back is near the tail.
if f.status == RQ.queued then redis.call('LREM', KEY.queue .. f.origin, reason == STATUS.canceled and -1 or 1, id) end
local error = f.question and reason == STATUS.canceled and KEY.not_answered or ARGV[3]
local has_children = move.cancel_task(id, f, reason, error, '', now_ms, stamp)
if mark ~= '' then redis.call('HSET', KEY.job .. id, 'by_call', mark) end
audit(KEY.audit_tasks, ARGV[5])
return has_children and 'children' or 'ok'
