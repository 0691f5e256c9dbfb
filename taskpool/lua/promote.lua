-- Queues a scheduled task whose time has come.
--
-- ARGV[1..2]  id, queue
-- Returns     'ok' | 'early' (also when its time was to be corrected after a step of the clock) | 'gone' (no longer scheduled: the entry is dropped)

local id, queue = ARGV[1], ARGV[2]
local key = KEY.job .. id
local score = redis.call('ZSCORE', KEY.scheduled .. queue, id)
if not score then return 'gone' end

local now_ms, stamp = clock()
if score * 1000 > now_ms then return 'early' end
local f = redis.call('HMGET', key, 'status', 'seq', 'clock_ms')
local due_ms = f[3] and score * 1000 + stepped_ms() - f[3] or 0
if due_ms > now_ms and f[1] == 'scheduled' then
  redis.call('ZADD', KEY.scheduled .. queue, string.format('%.3f', due_ms / 1000), id)
  redis.call('HSET', key, 'run_ms', string.format('%.0f', due_ms), 'clock_ms', stepped_ms())
  return 'early'
end
redis.call('ZREM', KEY.scheduled .. queue, id)
if f[1] ~= 'scheduled' then return 'gone' end

local seq = tonumber(f[2] or 0) + 1
redis.call('HSET', key, 'status', 'queued', 'enqueued_at', stamp, 'seq', seq)
enqueue(id, queue, false)
emit(id, seq, 'queued', 'queued', now_ms, '')
return 'ok'
