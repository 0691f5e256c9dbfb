-- Stores a schedule that is new or was changed, unless it was changed meanwhile.
--
-- ARGV[1]  its id
-- ARGV[2]  its revision before ('' = it is new)
-- ARGV[3]  its next occurrence before, in ms ('' = none): a pool that fires it changes only this
-- ARGV[4]  its incarnation: of an existing one, that which the change is for
-- ARGV[5]  when pools look at it next, in ms ('' = never)
-- ARGV[6]  how many schedules there may be whose ids begin with ARGV[7] ('' = any number); asked of a new one
-- ARGV[7]  the beginning of the ids of its project's schedules; '' for those without a project
-- ARGV[8]  its entry of the audit ('' = none)
-- ARGV[9]  the mark of this call
-- ARGV[10+] fields of its hash and their values, alternating ('' removes a field)
-- Returns  'ok'; 'changed': it isn't as it was; 'full'

local id, before, incarnation = ARGV[1], ARGV[2], ARGV[4]
local key = KEY.schedule .. id
local f = redis.call('HMGET', key, 'revision', 'incarnation', 'by_call', 'next_ms')
if f[3] == ARGV[9] then return 'ok' end -- sent again, because the answer was lost
if (f[1] or '') ~= before or f[1] and (f[2] ~= incarnation or (f[4] or '') ~= ARGV[3]) then return 'changed' end
if before == '' and ARGV[6] ~= '' then
  local from, to = '-', '+'
  if ARGV[7] ~= '' then from, to = '[' .. ARGV[7], '(' .. string.sub(ARGV[7], 1, -2) .. ';' end -- ';' comes after ':'
  if redis.call('ZLEXCOUNT', KEY.schedules, from, to) >= tonumber(ARGV[6]) then return 'full' end
end
local declared_by = redis.call('HGET', key, 'module')
if declared_by then redis.call('SREM', KEY.declared .. declared_by, id) end
redis.call('HSET', key, 'revision', (tonumber(before) or 0) + 1, 'incarnation', incarnation, 'by_call', ARGV[9])
for at = 10, #ARGV, 2 do
  if ARGV[at + 1] == '' then redis.call('HDEL', key, ARGV[at]) else redis.call('HSET', key, ARGV[at], ARGV[at + 1]) end
end
declared_by = redis.call('HGET', key, 'module')
if declared_by then redis.call('SADD', KEY.declared .. declared_by, id) end
redis.call('ZADD', KEY.schedules, 0, id)
if ARGV[5] == '' then
  redis.call('ZREM', KEY.schedules_due, id)
else
  redis.call('ZADD', KEY.schedules_due, string.format('%.3f', ARGV[5] / 1000), id)
end
audit(KEY.audit_tasks, ARGV[8])
return 'ok'
