-- Notes a step of an operation: what it has found or skipped, and where it goes on.
--
-- ARGV[1]  id
-- ARGV[2]  the program that made the step; ARGV[3] the number of steps before it; ARGV[4] its lease in ms from now on
-- ARGV[5]  a JSON object: `set` (fields and values), `add` (fields and numbers), `found` (ids of tasks), `status` (it has
--          ended with that), `undo_s` (how long it can be undone then)
-- ARGV[6]  entry of the audit, if it has ended; '' = none
-- Returns  'ok' (also when sent again) | 'lost' (another program goes on with it) | 'ended' (it was canceled, or is gone)

local id, step = ARGV[1], cjson.decode(ARGV[5])
local key, tasks = KEY.operation .. id, KEY.operation .. id .. KEY.operation_tasks
local f = redis.call('HMGET', key, 'status', 'driver', 'steps')
local steps = tonumber(f[3] or 0)
if f[1] ~= KEY.operation_running then
  return f[1] == step.status and steps == tonumber(ARGV[3]) + 1 and 'ok' or 'ended'
end
if f[2] ~= ARGV[2] then return 'lost' end
if steps == tonumber(ARGV[3]) + 1 then return 'ok' end
if steps ~= tonumber(ARGV[3]) then return 'lost' end

local now_ms = clock()
pass_when_full()
redis.call('HSET', key, 'steps', steps + 1, 'driver_ms', string.format('%.0f', now_ms + tonumber(ARGV[4])))
for name, by in pairs(step.add or {}) do redis.call('HINCRBY', key, name, by) end
for name, value in pairs(step.set or {}) do redis.call('HSET', key, name, value) end
if step.found and #step.found > 0 then redis.call('RPUSH', tasks, unpack(step.found)) end
if step.status then end_operation(id, step.status, step.undo_s, ARGV[6], now_ms) end
return 'ok'
