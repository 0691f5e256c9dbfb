-- Queues a scheduled task whose time has come.
--
-- ARGV[1..2]  id, queue
-- Returns     'ok' | 'early' | 'gone' (no longer scheduled: the entry is dropped)

local id, queue = ARGV[1], ARGV[2]
local key = KEY.job .. id
local score = redis.call('ZSCORE', KEY.scheduled .. queue, id)
if not score then return 'gone' end

local now_ms, stamp = clock()
if score * 1000 > now_ms then return 'early' end
redis.call('ZREM', KEY.scheduled .. queue, id)
local f = redis.call('HMGET', key, 'status', 'seq')
if f[1] ~= 'scheduled' then return 'gone' end

local seq = tonumber(f[2] or 0) + 1
redis.call('HSET', key, 'status', 'queued', 'enqueued_at', stamp, 'seq', seq)
enqueue(id, queue, false)
emit(id, seq, 'queued', 'queued', now_ms, '')
return 'ok'
