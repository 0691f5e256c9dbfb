-- Appends lines to a running task's log. The event keeps how many, and the id of the last one in the log; the lines
-- themselves are only told.
--
-- ARGV[1..2]  id, attempt id
-- ARGV[3]     at most about so many lines are kept
-- ARGV[4]     seconds the log is kept without a further line
-- ARGV[5+]    lines, each a JSON object
-- Returns     'ok' | 'lost' (nothing changed)

local id, key = ARGV[1], KEY.job .. ARGV[1]
local f = redis.call('HMGET', key, 'attempt_id', 'status', 'seq', 'stop_ms')
if f[1] ~= ARGV[2] or f[2] ~= 'started' then return 'lost' end

local now_ms = clock()
local seq = tonumber(f[3]) + 1
local last
for at = 5, #ARGV do
  last = redis.call('XADD', KEY.log .. id, 'MAXLEN', '~', ARGV[3], '*', 'l', ARGV[at])
end
redis.call('EXPIRE', KEY.log .. id, ARGV[4])
redis.call('HSET', key, 'seq', seq)
emit(id, seq, 'log', f[4] and 'stopping' or 'in_progress', now_ms,
  ',"count":' .. (#ARGV - 4) .. ',"last":"' .. last .. '"', ',"lines":[' .. table.concat(ARGV, ',', 5) .. ']')
return 'ok'
