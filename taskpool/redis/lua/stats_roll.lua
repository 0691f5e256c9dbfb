-- Closes a minute: adds what was counted in it to the totals, and keeps its bucket for the history.
--
-- ARGV[1]  the minute since 1970
-- ARGV[2]  its bucket; ARGV[3] the bucket as it was read ('' = none)
-- ARGV[4]  how many pairs of type and queue get totals of their own from now on; then those pairs
-- ARGV[..] alternating field of the totals and increment
-- Returns  'ok' | 'stale' (another pool has closed it; also when sent again)

local minute = ARGV[1]
if (redis.call('HGET', KEY.stats_minutes, minute) or '') ~= ARGV[3] then return 'stale' end
local is_open = redis.call('SISMEMBER', KEY.stats_open, minute) == 1
local fields = 5 + tonumber(ARGV[4])
if not is_open and fields <= #ARGV then return 'stale' end

pass_when_full() -- it frees more than it takes
redis.call('SREM', KEY.stats_open, minute)
redis.call('DEL', KEY.stats_submitted .. minute, KEY.stats_counted .. minute)
redis.call('HSET', KEY.stats_minutes, minute, ARGV[2])
-- What was made of the minute before is made anew.
redis.call('HDEL', KEY.stats_tens, (minute - minute % 10) / 10)
redis.call('HDEL', KEY.stats_hours, (minute - minute % 60) / 60)
redis.call('HDEL', KEY.stats_days, (minute - minute % 1440) / 1440)
for at = 5, fields - 1 do redis.call('SADD', KEY.stats_pairs, ARGV[at]) end
-- A total that another program has damaged keeps the others from nothing.
for at = fields, #ARGV, 2 do redis.pcall('HINCRBY', KEY.counters, ARGV[at], ARGV[at + 1]) end
return 'ok'
