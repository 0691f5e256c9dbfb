-- Notes a step of an operation: what it has found or done, and where it goes on.
--
-- ARGV[1]  id
-- ARGV[2]  the program that made the step; ARGV[3] the number of steps before it; ARGV[4] its lease in ms from now on
-- ARGV[5]  a JSON object: `set` (fields and values), `add` (fields and numbers), `found` (ids of tasks), `status` (it has
--          ended with that), `undo_s` (how long it can be undone then)
-- Returns  'ok' (also when sent again) | 'lost' (another program goes on with it) | 'ended' (it was canceled, or is gone)

local id, step = ARGV[1], cjson.decode(ARGV[5])
local key, tasks = KEY.operation .. id, KEY.operation .. id .. KEY.operation_tasks
local f = redis.call('HMGET', key, 'status', 'driver', 'steps', 'created_ms', 'undoes')
local steps = tonumber(f[3] or 0)
if f[2] == ARGV[2] and steps == tonumber(ARGV[3]) + 1 then return 'ok' end
if f[2] ~= ARGV[2] or steps ~= tonumber(ARGV[3]) then return f[1] == KEY.operation_running and 'lost' or 'ended' end
local is_over = f[1] ~= KEY.operation_running
if is_over and not step.add then return 'ended' end

-- What the step has done to tasks counts, even if the operation was canceled meanwhile.
local now_ms = clock()
pass_when_full()
for name, by in pairs(step.add or {}) do redis.call('HINCRBY', key, name, by) end
redis.call('HSET', key, 'steps', steps + 1)
if is_over then return 'ended' end
for name, value in pairs(step.set or {}) do redis.call('HSET', key, name, value) end
if step.found and #step.found > 0 then redis.call('RPUSH', tasks, unpack(step.found)) end
redis.call('HSET', key, 'driver_ms', string.format('%.0f', now_ms + tonumber(ARGV[4])))
if step.status then end_operation(id, step.status, step.undo_s, now_ms) end
return 'ok'
