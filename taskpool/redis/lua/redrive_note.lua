-- Notes the progress, or the end, of a redrive. Each task is counted once, however often it is noted.
--
-- ARGV[1]  fingerprint
-- ARGV[2]  id of the redrive
-- ARGV[3]  JSON: `set` {field: value}, `waiting` {task that is to be retried: its `seq`}, `ended` {task: the count that it
--          belongs to, succeeded | failed_again | left_out}, `refused` (tasks that can't be retried), `passed` (how many more
--          tasks are left out)
-- ARGV[4]  entry of the audit; '' = none
-- ARGV[5]  the program that made the step; '' = none, a person ends the redrive. ARGV[6] the number of steps before it;
--          ARGV[7] its lease in ms from now on
-- Returns  'ok' (also when sent again) | 'gone' (there is no such redrive) | 'lost' (another program goes on with it) |
--          'done', 'stopped' (it has ended: nothing was changed)

local key = KEY.redrive .. ARGV[1]
local waiting, f = key .. KEY.redrive_waiting, redis.call('HMGET', key, 'id', 'status', 'driver', 'steps_noted')
local noted, steps = cjson.decode(ARGV[3]), tonumber(f[4] or 0)
if f[1] ~= ARGV[2] then return 'gone' end
local is_again = ARGV[5] ~= '' and f[3] == ARGV[5] and steps == tonumber(ARGV[6]) + 1
if f[2] ~= 'running' then return is_again and noted.set.status == f[2] and 'ok' or f[2] end
if is_again then return 'ok' end
if ARGV[5] ~= '' and (f[3] ~= ARGV[5] or steps ~= tonumber(ARGV[6])) then return 'lost' end

local now_ms = clock()
pass_when_full()
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
for _, id in ipairs(noted.refused) do
  if redis.call('HDEL', waiting, id) == 1 then
    redis.call('HINCRBY', key, 'retried', -1)
    redis.call('HINCRBY', key, 'step_retried', -1) -- another one takes its place
    redis.call('HINCRBY', key, 'left_out', 1)
    redis.call('SADD', key .. KEY.redrive_refused, id)
  end
end
if noted.passed > 0 then redis.call('HINCRBY', key, 'left_out', noted.passed) end
if ARGV[5] ~= '' then
  redis.call('HSET', key, 'steps_noted', steps + 1, 'driver_ms', string.format('%.0f', now_ms + tonumber(ARGV[7])))
end
if noted.set.status then
  redis.call('HSET', key, 'ended_ms', string.format('%.0f', now_ms))
  redis.call('EXPIRE', key, KEY.redrive_kept_s)
  redis.call('DEL', waiting, key .. KEY.redrive_refused)
  redis.call('SREM', KEY.redrives, ARGV[1])
end
audit_counted(ARGV[4], redis.call('HGET', key, 'retried'))
return 'ok'
