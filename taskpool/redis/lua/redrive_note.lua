-- Notes the progress, or the end, of a redrive. Each task is counted once, however often it is noted.
--
-- ARGV[1]  fingerprint
-- ARGV[2]  id of the redrive
-- ARGV[3]  JSON: `set` {field: value}, `waiting` {task that is to be retried: its `seq`}, `ended` {task: the count that it
--          belongs to, succeeded | failed_again | left_out}, `passed` (how many tasks are left out)
-- ARGV[4]  entry of the audit; '' = none
-- Returns  'ok' | 'gone' (there is no such redrive) | 'done', 'stopped' (it has ended: nothing was changed)

local key = KEY.redrive .. ARGV[1]
local waiting, f = key .. KEY.redrive_waiting, redis.call('HMGET', key, 'id', 'status')
if f[1] ~= ARGV[2] then return 'gone' end
if f[2] ~= 'running' then return f[2] end

local noted = cjson.decode(ARGV[3])
for field, value in pairs(noted.set) do redis.call('HSET', key, field, value) end
for id, seq in pairs(noted.waiting) do
  if redis.call('HSETNX', waiting, id, seq) == 1 then
    redis.call('HINCRBY', key, 'retried', 1)
    redis.call('HINCRBY', key, 'step_retried', 1)
  end
end
for id, count in pairs(noted.ended) do
  if redis.call('HDEL', waiting, id) == 1 then
    redis.call('HINCRBY', key, count, 1)
    redis.call('HINCRBY', key, 'step_' .. count, 1)
    if count == 'left_out' then redis.call('HINCRBY', key, 'step_retried', -1) end -- another one takes its place
  end
end
if noted.passed > 0 then redis.call('HINCRBY', key, 'left_out', noted.passed) end
if noted.set.status then
  local now_ms = clock()
  redis.call('HSET', key, 'ended_ms', string.format('%.0f', now_ms))
  redis.call('EXPIRE', key, KEY.redrive_kept_s)
  redis.call('DEL', waiting)
  redis.call('SREM', KEY.redrives, ARGV[1])
end
audit(KEY.audit_tasks, ARGV[4])
return 'ok'
