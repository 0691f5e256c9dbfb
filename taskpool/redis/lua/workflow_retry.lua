-- Begins to retry an ended workflow: notes which members are to run again. workflow_revive.lua
-- gives them their new lives.
--
-- ARGV[1]  id
-- ARGV[2]  mark of this call, by which it is known when it is sent again
-- ARGV[3]  the number of the workflow's last event when the caller chose the members
-- ARGV[4]  entry of the audit; '' = none
-- ARGV[5+] the numbers of the members, in ascending order: each comes after those that it depends on
-- Returns  'ok' (also when sent again) | 'gone' | 'changed' (something has happened since: choose anew) | the word of the
--          status that doesn't allow it

local id, key, mark = ARGV[1], KEY.workflow .. ARGV[1], ARGV[2]
local f = redis.call('HMGET', key, 'status', 'removed', 'by_call', 'seq', 'ended', 'total')
if not f[1] or f[2] then return 'gone' end
if f[3] == mark then return 'ok' end
if f[1] == STATUS.in_progress or f[1] == STATUS.stopping then return f[1] end
if f[4] ~= ARGV[3] then return 'changed' end

local now_ms, stamp = clock()
for at = 5, #ARGV, 1000 do
  redis.call('RPUSH', key .. KEY.workflow_reviving, unpack(ARGV, at, math.min(at + 999, #ARGV)))
end
redis.call('SADD', KEY.workflows_reviving, id)
redis.call('HSET', key, 'by_call', mark)
redis.call('HDEL', key, 'stop', 'stop_grace', 'stop_force')
members().settle(id, {status = f[1], ended = tonumber(f[5]), total = tonumber(f[6])}, now_ms, stamp)
audit(KEY.audit_tasks, ARGV[4])
return 'ok'
