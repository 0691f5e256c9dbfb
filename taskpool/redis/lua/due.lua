-- Reads the members of a sorted set whose time has come, by Redis's clock. Writes nothing.
--
-- KEYS[1]  zset, scored in seconds
-- ARGV[1]  seconds added to now; ARGV[2] at most so many members; ARGV[3] '1': the newest due first ('': the oldest)
-- ARGV[4]  the latest time in ms that counts as now ('' = any)
-- Returns  {now_ms, score of the first member not yet due ('' = none, or never), member...}

local now_ms = clock()
if ARGV[4] ~= '' then now_ms = math.min(now_ms, tonumber(ARGV[4])) end
local now_s = string.format('%.3f', now_ms / 1000 + tonumber(ARGV[1]))
local due
if ARGV[3] == '1' then
  due = redis.call('ZREVRANGEBYSCORE', KEYS[1], now_s, '-inf', 'LIMIT', 0, ARGV[2])
else
  due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_s, 'LIMIT', 0, ARGV[2])
end
local next_one = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now_s, '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {now_ms, next_one[2] or '', unpack(due)}
