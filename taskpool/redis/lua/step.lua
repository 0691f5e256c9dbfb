-- Notes a step of Redis's clock, which a pool has measured against its own: every attempt gets its lease anew, from now
-- on by the new clock, and so does every webhook that is being sent; webhooks that wait for their next attempt are
-- moved by the step. Of several pools that measure the same step, the first one's counts. Due times of tasks are
-- corrected by rebase.lua.
--
-- ARGV[1]  the step in ms; negative: the clock was set back
-- ARGV[2]  the sum of all steps (see tick.lua) when the caller began to measure
-- ARGV[3]  the least step in ms that counts
-- ARGV[4]  the caller's lease in ms. Attempts that don't show theirs get the longest one of any pool
-- Returns  {'stepped' | 'known' (it is another pool's already), the sum of all steps now}

local now_ms = clock()
local f = redis.call('HMGET', KEY.clock, 'stepped_ms', 'lease_ms')
local sum_ms = tonumber(f[1] or 0)
local new_ms = tonumber(ARGV[1]) - (sum_ms - tonumber(ARGV[2]))
if math.abs(new_ms) < tonumber(ARGV[3]) then return {'known', sum_ms} end

pass_when_full()
sum_ms = sum_ms + new_ms
redis.call('HSET', KEY.clock, 'stepped_ms', string.format('%.0f', sum_ms), 'since_ms', string.format('%.0f', now_ms),
  'seen_ms', string.format('%.0f', now_ms))
-- Each step is kept by the sum before it; a clock that is stepped very often loses the old ones.
if redis.call('HLEN', KEY.clock) > KEY.steps_kept then
  for _, name in ipairs(redis.call('HKEYS', KEY.clock)) do
    if string.find(name, '^after:') then redis.call('HDEL', KEY.clock, name) end
  end
end
redis.call('HSET', KEY.clock, string.format('after:%.0f', sum_ms - new_ms), string.format('%.0f', new_ms))

-- The lease that an attempt has: a claim and a heartbeat write its end and their own time together.
local longest_ms = math.max(tonumber(f[2] or 0), tonumber(ARGV[4]))
local function lease_of(score, heartbeat)
  local ms = heartbeat and (score - KEY.wip_grace_s - heartbeat) * 1000
  return ms and ms > 0 and ms <= longest_ms and ms or longest_ms
end

local left = KEY.leases_at_once
for _, queue in ipairs(redis.call('SMEMBERS', KEY.queues)) do
  local leases = KEY.wip .. string.sub(queue, #KEY.queue + 1)
  local entries = redis.call('ZRANGE', leases, 0, left - 1, 'WITHSCORES')
  for at = 1, #entries, 2 do
    local execution = redis.call('HMGET', KEY.execution .. entries[at], 'id', 'last_heartbeat')
    if not execution[1] then -- a plain RQ worker's has an id, and an end by that host's clock
      local ends_ms = now_ms + lease_of(tonumber(entries[at + 1]), tonumber(execution[2]))
      redis.call('ZADD', leases, 'XX', string.format('%.3f', ends_ms / 1000 + KEY.wip_grace_s), entries[at])
    end
  end
  left = left - #entries / 2
  if left <= 0 then break end
end

for _, lane in ipairs(redis.call('ZRANGE', KEY.webhooks_lanes, 0, left - 1)) do
  local sending, waiting = KEY.webhooks_sending .. lane, KEY.webhooks_waiting .. lane
  for _, id in ipairs(redis.call('ZRANGE', sending, 0, left - 1)) do
    redis.call('ZADD', sending, 'XX', now_ms + KEY.delivery_lease_ms, id)
  end
  local entries = redis.call('ZRANGE', waiting, 0, left - 1, 'WITHSCORES')
  for at = 1, #entries, 2 do
    local base = redis.call('HGET', KEY.delivery .. entries[at], 'clock')
    if base then redis.call('HDEL', KEY.delivery .. entries[at], 'clock') end
    local moved = new_ms
    if base then moved = moved_ms(base) or 0 end
    redis.call('ZADD', waiting, 'XX', entries[at + 1] + moved, entries[at])
  end
  redis.call('ZADD', KEY.webhooks_lanes, 'XX', now_ms, lane)
  left = left - 1 - #entries / 2
  if left <= 0 then break end
end
return {'stepped', sum_ms}
