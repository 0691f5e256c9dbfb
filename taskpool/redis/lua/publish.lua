-- Announces a worker pool and the task types it serves. Repeated with every heartbeat, so that it heals itself.
--
-- ARGV[1]  pool id; ARGV[2] the pool as JSON; ARGV[3] seconds until it counts as gone
-- ARGV[4+] types: alternating name, and JSON of the TypeInfo
-- Returns  'ok'

local pool, ttl_s = ARGV[1], tonumber(ARGV[3])
local now_ms = clock()
pass_when_full()
redis.call('SET', KEY.pool .. pool, ARGV[2], 'EX', ttl_s)
redis.call('ZADD', KEY.pools, now_ms, pool)
redis.call('ZREMRANGEBYSCORE', KEY.pools, '-inf', now_ms - ttl_s * 1000)
for at = 4, #ARGV, 2 do
  redis.call('HSET', KEY.types, ARGV[at], ARGV[at + 1])
  redis.call('ZADD', KEY.types_seen, now_ms, ARGV[at])
end
return 'ok'
