-- Keeps the state of a running task, for its next attempt.
--
-- ARGV[1..2]  id, attempt id
-- ARGV[3]     the state as JSON
-- Returns     'ok' | 'lost' (nothing changed)

local f = redis.call('HMGET', KEY.job .. ARGV[1], 'attempt_id', 'status')
if f[1] ~= ARGV[2] or f[2] ~= RQ.in_progress then return 'lost' end
redis.call('SET', KEY.checkpoint .. ARGV[1], ARGV[3])
return 'ok'
