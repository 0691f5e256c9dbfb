-- Marks an ended workflow as removed: it is listed no more, and its members are removed with steps of workflow_purge.lua.
--
-- ARGV[1]  id
-- ARGV[2]  entry of the audit; '' = none
-- Returns  'ok' (also when sent again, until it is gone) | 'gone' | the word of the status that doesn't allow it

local id, key = ARGV[1], KEY.workflow .. ARGV[1]
local f = redis.call('HMGET', key, 'status', 'removed', 'project')
if not f[1] then return 'gone' end
if f[2] then return 'ok' end
if f[1] == STATUS.in_progress or f[1] == STATUS.stopping then return f[1] end

pass_when_full()
redis.call('HSET', key, 'removed', 1)
redis.call('ZADD', KEY.workflows_ended, 0, id)
redis.call('ZREM', KEY.workflows, id)
if f[3] then redis.call('ZREM', KEY.workflows_of .. f[3], id) end
audit(KEY.audit_tasks, ARGV[2])
return 'ok'
