-- Resumes what was paused, and wakes idle workers for the tasks that wait. The rest of many queues is woken by further
-- calls.
--
-- ARGV[1]  'all', 'queue:' and a queue, or 'pool:' and a pool's id
-- ARGV[2]  entry of the audit ('' = none)
-- ARGV[3+] queues in which tasks may wait, at most some hundreds
-- Returns  'ok' (also if it wasn't paused) | 'draining' (the pool ends: nothing was changed)

local before = redis.call('HGET', KEY.switches, ARGV[1])
if before and string.find(before, '"drain":true', 1, true) then return 'draining' end
if before then
  pass_when_full()
  redis.call('HDEL', KEY.switches, ARGV[1])
  audit(KEY.audit_tasks, ARGV[2])
end
for at = 3, #ARGV do
  local length = redis.pcall('LLEN', KEY.queue .. ARGV[at])
  if type(length) == 'number' then ring(ARGV[at], length) end
end
return 'ok'
