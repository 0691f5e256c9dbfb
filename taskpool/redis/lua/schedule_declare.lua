-- Notes what a deployment declares in a module, and says whose declaration counts: of those of live pools, the one that
-- was first seen last. So a new deployment wins at once, and an old pool that starts again doesn't win.
--
-- ARGV[1]  the module
-- ARGV[2]  the digest of what the calling pool declares in it
-- ARGV[3]  '1': that is a schedule at least
-- ARGV[4+] the digests of the other live pools that have loaded the module
-- Returns  {the digest that counts, the ids of the schedules that the module declares now}

local now_ms = clock()
local key, own = KEY.declaring .. ARGV[1], ARGV[2]
local ids = redis.call('SMEMBERS', KEY.declared .. ARGV[1])
if ARGV[3] == '' and #ids == 0 and redis.call('EXISTS', key) == 0 then return {own} end

redis.call('HSETNX', key, own, now_ms)
redis.call('EXPIRE', key, KEY.declarations_ttl_s)
local is_live, winner, winner_ms = {}, own, tonumber(redis.call('HGET', key, own)) or 0
is_live[own] = true
for at = 4, #ARGV do
  local digest = ARGV[at]
  local seen_ms = tonumber(redis.call('HGET', key, digest))
  is_live[digest] = true
  if seen_ms and (seen_ms > winner_ms or seen_ms == winner_ms and digest > winner) then
    winner, winner_ms = digest, seen_ms
  end
end

if redis.call('HLEN', key) > KEY.declarations_kept then
  local seen, oldest, oldest_ms = redis.call('HGETALL', key), nil, nil
  for at = 1, #seen, 2 do
    local seen_ms = tonumber(seen[at + 1]) or 0
    if not is_live[seen[at]] and (not oldest_ms or seen_ms < oldest_ms) then oldest, oldest_ms = seen[at], seen_ms end
  end
  if oldest then redis.call('HDEL', key, oldest) end
end

return {winner, unpack(ids)}
