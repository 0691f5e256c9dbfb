-- Asks a workflow to stop. From here on nothing is added to it, no member is started, and tasks that are stored later are
-- canceled at once. What waits or runs is stopped with steps of workflow_open.lua.
--
-- ARGV[1]  id
-- ARGV[2]  grace in seconds for running tasks; ARGV[3] '1' = kill them at once
-- ARGV[4]  entry of the audit; '' = none
-- Returns  'ok' (also when it was asked before) | 'gone' | the word of the status that doesn't allow it

local id, key = ARGV[1], KEY.workflow .. ARGV[1]
local f = redis.call('HMGET', key, 'status', 'removed', 'stop_grace', 'stop_force')
if not f[1] or f[2] then return 'gone' end
if f[1] ~= STATUS.in_progress and f[1] ~= STATUS.stopping then return f[1] end
local is_first = f[1] == STATUS.in_progress
if not is_first and (f[4] == '1' or (ARGV[3] ~= '1' and tonumber(ARGV[2]) >= tonumber(f[3]))) then return 'ok' end

pass_when_full()
redis.call('HSET', key, 'status', STATUS.stopping, 'stop', 1, 'stop_grace', ARGV[2], 'stop_force', ARGV[3])
redis.call('ZADD', KEY.workflows_stopping, 1, id)
if is_first then
  local now_ms = clock()
  emit(id, redis.call('HINCRBY', key, 'seq', 1), 'workflow_stopping', STATUS.stopping, now_ms, '')
end
audit(KEY.audit_tasks, ARGV[4])
return 'ok'
