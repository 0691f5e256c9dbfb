-- Notes how far a running task is.
--
-- ARGV[1..2]  id, attempt id
-- ARGV[3]     progress as a JSON object
-- Returns     'ok' | 'lost' (nothing changed)

local id, key = ARGV[1], KEY.job .. ARGV[1]
local f = redis.call('HMGET', key, 'attempt_id', 'status', 'seq', 'stop_ms')
if f[1] ~= ARGV[2] or f[2] ~= RQ.in_progress then return 'lost' end

local now_ms = clock()
local seq = tonumber(f[3]) + 1
redis.call('HSET', key, 'progress', ARGV[3], 'seq', seq)
emit(id, seq, 'progress', f[4] and STATUS.stopping or STATUS.in_progress, now_ms, ',"progress":' .. ARGV[3])
return 'ok'
