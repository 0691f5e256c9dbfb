-- Asks a running task to stop. The request is a flag on the record, which heartbeats read; the message to its worker
-- only makes it quick. Asked again, the sooner deadline counts: a later one, or the same call sent twice, changes nothing.
--
-- ARGV[1]  id
-- ARGV[2]  grace in seconds before it is killed; ARGV[3] '1' = kill at once
-- ARGV[4]  entry of the audit; '' = none
-- Returns  'ok' | 'gone' | RQ's word of the status that doesn't allow it

local id, grace_s, force = ARGV[1], ARGV[2], ARGV[3]
local key = KEY.job .. id
local f = redis.call('HMGET', key, 'status', 'attempt_id', 'worker_name', 'seq', 'stop_ms', 'stop_force', 'stop_grace_s')
if not f[1] then return 'gone' end
if f[1] ~= RQ.in_progress then return f[1] end

-- `stop_ms` and `stop_grace_s` are those of the request that counts. That it comes sooner is no step of the task: nobody
-- is shown the grace.
local now_ms = clock()
local is_step = not f[5] or (force == '1' and f[6] ~= '1')
local ends_ms = f[5] and tonumber(f[5]) + (tonumber(f[7]) or 0) * 1000
if is_step or (f[6] ~= '1' and now_ms + tonumber(grace_s) * 1000 < ends_ms) then
  pass_when_full()
  redis.call('HSET', key, 'stop_ms', string.format('%.0f', now_ms), 'stop_grace_s', grace_s, 'stop_force', force)
  if is_step then
    local seq = tonumber(f[4] or 0) + 1
    redis.call('HSET', key, 'seq', seq)
    emit(id, seq, EVENT.stopping, STATUS.stopping, now_ms, ',"force":' .. (force == '1' and 'true' or 'false'))
  end
  audit(KEY.audit_tasks, ARGV[4])
else
  grace_s, force = tonumber(f[7]) and f[7] or grace_s, f[6] or ''
end
redis.call('PUBLISH', KEY.commands .. (f[3] or ''), string.format(
  '{"command":"taskpool-stop","job_id":"%s","attempt_id":"%s","force":%s,"grace_s":%s}',
  id, f[2] or '', force == '1' and 'true' or 'false', grace_s))
-- A plain RQ worker's execution has no attempt id: RQ's own command stops it.
if not f[2] or f[2] == '' then
  redis.call('PUBLISH', KEY.commands .. (f[3] or ''), string.format('{"command":"stop-job","job_id":"%s"}', id))
end
return 'ok'
