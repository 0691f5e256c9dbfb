-- Enters an operation on many tasks. One that undoes another is entered only while that can be undone.
--
-- ARGV[1]  its id
-- ARGV[2]  its fields: a JSON object of texts, with `undoes` if it undoes another operation
-- ARGV[3]  the project of the caller ('' = none)
-- ARGV[4]  entry of the audit; '' = none
-- ARGV[5]  the program that goes on with it ('' = any); ARGV[6] its lease in ms
-- ARGV[7]  how many queues a project may use, if it moves tasks to a queue (0 = any number)
-- Returns  'ok' (also when sent again) | 'capped' (the project uses as many queues already) | of the one that is to be undone: 'gone' | 'running' (it hasn't ended) | 'undone'
--          (that was asked for before) | 'late' (it can't be undone any more, or never could)

local id, fields = ARGV[1], cjson.decode(ARGV[2])
local key = KEY.operation .. id
if redis.call('EXISTS', key) == 1 then return 'ok' end
if fields.action == 'move' then
  local names = used_names({queues = tonumber(ARGV[7])})
  names.look_at('queues', KEY.queue .. fields.queue, ARGV[3])
  if names.reached(nil, ARGV[3]) then return 'capped' end
  names.enter()
end
local now_ms, to_undo = clock(), 0
if fields.undoes then
  local other = KEY.operation .. fields.undoes
  local f = redis.call('HMGET', other, 'status', 'undo_ms', 'undone_by', 'changed')
  if not f[1] then return 'gone' end
  if f[1] == KEY.operation_running then return 'running' end
  if f[3] then return 'undone' end
  if tonumber(f[2] or 0) < now_ms then return 'late' end
  to_undo = f[4]
  redis.call('HSET', other, 'undone_by', id)
  redis.call('PERSIST', other .. KEY.operation_tasks)
end

local flat = {'status', KEY.operation_running, 'created_ms', string.format('%.0f', now_ms), 'steps', 0}
for name, value in pairs(fields) do
  flat[#flat + 1] = name
  flat[#flat + 1] = value
end
redis.call('HSET', key, unpack(flat))
if ARGV[5] ~= '' then
  redis.call('HSET', key, 'driver', ARGV[5], 'driver_ms', string.format('%.0f', now_ms + tonumber(ARGV[6])))
end
redis.call('SADD', KEY.operations_running, id)
for _, index in ipairs({KEY.operations, ARGV[3] ~= '' and KEY.operations_of .. ARGV[3] or nil}) do
  redis.call('ZADD', index, 0, id)
  redis.call('ZREMRANGEBYRANK', index, 0, -KEY.operations_kept - 1)
end
audit_counted(ARGV[4], to_undo)
return 'ok'
