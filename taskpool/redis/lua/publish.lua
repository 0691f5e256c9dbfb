-- Announces a worker pool and the task types it serves. Repeated with every heartbeat, so that it heals itself.
--
-- ARGV[1]  pool id; ARGV[2] the pool as JSON; ARGV[3] seconds until it counts as gone; ARGV[4] its build ('' = none)
-- ARGV[5+] types: alternating name, and JSON of the TypeInfo
-- Returns  'ok' | 'drain' (the pool was asked to finish its tasks and end)

local pool, ttl_s = ARGV[1], tonumber(ARGV[3])
local now_ms = clock()
pass_when_full()
redis.call('SET', KEY.pool .. pool, ARGV[2], 'EX', ttl_s)
redis.call('ZADD', KEY.pools, now_ms, pool)
redis.call('ZREMRANGEBYSCORE', KEY.pools, '-inf', now_ms - ttl_s * 1000)
if ARGV[4] ~= '' and redis.call('ZADD', KEY.builds, 'NX', now_ms, ARGV[4]) == 1 then
  redis.call('ZREMRANGEBYRANK', KEY.builds, 0, -1 - KEY.builds_kept)
end
for at = 5, #ARGV, 2 do
  redis.call('HSET', KEY.types, ARGV[at], ARGV[at + 1])
  redis.call('ZADD', KEY.types_seen, now_ms, ARGV[at])
end

-- Pools that go away without draining stay known for a while, and so does what was paused of them.
redis.call('SET', KEY.pool_known .. pool, ARGV[2], 'EX', KEY.pool_known_s)
redis.call('ZADD', KEY.pools_known, now_ms, pool)
local function forget(found)
  for _, id in ipairs(found) do
    redis.call('ZREM', KEY.pools_known, id)
    redis.call('DEL', KEY.pool_known .. id)
    redis.call('HDEL', KEY.switches, 'pool:' .. id)
  end
end
forget(redis.call('ZRANGEBYSCORE', KEY.pools_known, '-inf', now_ms - KEY.pool_known_s * 1000, 'LIMIT', 0, 100))
local excess = redis.call('ZCARD', KEY.pools_known) - KEY.pools_known_most
if excess > 0 then forget(redis.call('ZRANGE', KEY.pools_known, 0, math.min(excess, 100) - 1)) end

local switch = redis.pcall('HGET', KEY.switches, 'pool:' .. pool)
return type(switch) == 'string' and string.find(switch, '"drain":true', 1, true) and 'drain' or 'ok'
