-- Removes a schedule, unless it was changed meanwhile. The tasks that it submitted stay.
--
-- ARGV[1]  its id
-- ARGV[2]  its incarnation
-- ARGV[3]  its revision
-- ARGV[4]  its entry of the audit ('' = none)
-- Returns  'ok'; 'gone': there is none; 'changed': it isn't as it was

local id = ARGV[1]
local f = redis.call('HMGET', KEY.schedule .. id, 'incarnation', 'revision', 'module')
if not f[1] then return 'gone' end
if f[1] ~= ARGV[2] or f[2] ~= ARGV[3] then return 'changed' end
redis.call('DEL', KEY.schedule .. id, KEY.occurrences .. id)
if f[3] then redis.call('SREM', KEY.declared .. f[3], id) end
redis.call('ZREM', KEY.schedules, id)
redis.call('ZREM', KEY.schedules_due, id)
audit(KEY.audit_tasks, ARGV[4])
return 'ok'
