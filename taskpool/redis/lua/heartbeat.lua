-- Renews the leases of what a pool runs (never shortens one), shows them to RQ's tools, and tells which of its attempts must
-- stop.
--
-- ARGV[1]  lease in ms; then for each attempt: id, attempt id, queue
-- Returns  a word for each, in order: 'ok' | 'stop' | 'force' | 'lost' (another attempt holds the lease; nothing was renewed)

local now_ms, stamp = clock()
local until_s = string.format('%.3f', (now_ms + tonumber(ARGV[1])) / 1000 + KEY.wip_grace_s)
local reply = {}
pass_when_full() -- a lease that ends for want of memory would cost the attempt
for at = 2, #ARGV, 3 do
  local id, attempt_id, queue = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local key, member = KEY.job .. id, id .. ':' .. attempt_id
  local f = redis.call('HMGET', key, 'attempt_id', 'status', 'stop_ms', 'stop_force')
  if f[1] ~= attempt_id or f[2] ~= RQ.in_progress then
    reply[#reply + 1] = 'lost'
  else
    redis.call('ZADD', KEY.wip .. queue, 'GT', until_s, member)
    redis.call('HSET', key, 'last_heartbeat', stamp)
    if redis.call('HSET', KEY.execution .. member, 'last_heartbeat', now_ms / 1000) == 1 then
      -- It is the first heartbeat, or what RQ's tools are shown had expired: in an outage, or by a step of Redis's clock.
      local worker = redis.call('HGET', key, 'worker_name') or ''
      redis.call('HSET', KEY.execution .. member, 'job_id', id, 'created_at', now_ms / 1000, 'worker_name', worker)
      redis.call('SADD', KEY.worker .. worker .. ':executions', member)
    end
    redis.call('EXPIRE', KEY.execution .. member, KEY.wip_grace_s)
    reply[#reply + 1] = f[4] == '1' and 'force' or (f[3] and 'stop' or 'ok')
  end
end
return reply
