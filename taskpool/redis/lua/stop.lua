-- Asks a running task to stop. The request is a flag on the record, which heartbeats read; the message to its worker
-- only makes it quick. Asked again, the sooner deadline counts: a later one, or the same call sent twice, changes
-- nothing.
--
-- ARGV[1]  id
-- ARGV[2]  grace in seconds before it is killed; ARGV[3] '1' = kill at once
-- ARGV[4]  entry of the audit; '' = none
-- ARGV[5]  mark of the operation that stops it; nil = there is none. With one, 'ok' is also the answer about a task that
--          it has stopped or canceled before
-- ARGV[6]  the program that goes on with that
-- Returns  'ok' | 'gone' | 'lost' (another program goes on with the operation, or it has ended) | RQ's word of the status
--          that doesn't allow it

local move = moves()
local id, grace_s, force = ARGV[1], ARGV[2], ARGV[3]
local work = work_of(ARGV[5] or '', ARGV[6])
if work.is_lost() then return 'lost' end
local f = move.record(id, 'status', 'attempt_id', 'worker_name', 'seq', 'stop_ms', 'stop_force', 'stop_grace_s',
  'by_call', 'operations')
if not f.status then return 'gone' end
if work.has_changed(f) then return 'ok' end
if f.status ~= RQ.in_progress then return f.status end

-- `stop_ms` and `stop_grace_s` are those of the request that counts. A sooner deadline is no
-- step of the task: no event shows the grace.
local now_ms = clock()
local is_step = not f.stop_ms or (force == '1' and f.stop_force ~= '1')
local ends_ms = f.stop_ms and tonumber(f.stop_ms) + (tonumber(f.stop_grace_s) or 0) * 1000
if is_step or (f.stop_force ~= '1' and now_ms + tonumber(grace_s) * 1000 < ends_ms) then
  pass_when_full()
  redis.call('HSET', KEY.job .. id, 'stop_ms', string.format('%.0f', now_ms), 'stop_grace_s', grace_s, 'stop_force', force)
  if is_step then
    local seq = tonumber(f.seq or 0) + 1
    redis.call('HSET', KEY.job .. id, 'seq', seq)
    emit(id, seq, EVENT.stopping, STATUS.stopping, now_ms, ',"force":' .. (force == '1' and 'true' or 'false'))
  end
  audit(KEY.audit_tasks, ARGV[4])
else
  grace_s, force = tonumber(f.stop_grace_s) and f.stop_grace_s or grace_s, f.stop_force or ''
end
if ARGV[5] then
  pass_when_full()
  redis.call('HSET', KEY.job .. id, work.fields(f))
end
redis.call('PUBLISH', KEY.commands .. (f.worker_name or ''), string.format(
  '{"command":"taskpool-stop","job_id":"%s","attempt_id":"%s","force":%s,"grace_s":%s}',
  id, f.attempt_id or '', force == '1' and 'true' or 'false', grace_s))
-- A plain RQ worker's execution has no attempt id: RQ's own command stops it.
if not f.attempt_id or f.attempt_id == '' then
  redis.call('PUBLISH', KEY.commands .. (f.worker_name or ''), string.format('{"command":"stop-job","job_id":"%s"}', id))
end
return 'ok'
