-- Releases tasks that waited for one that has ended: those whose last parent it was are queued, and those of a task
-- that did not end well are canceled (and what waits for them follows through the outbox).
--
-- ARGV[1]  id of the ended task
-- ARGV[2]  at most so many children in this call
-- Returns  how many children are left; -1 when the task hasn't ended (a retry by hand revived it): they wait on

local parent, limit = ARGV[1], tonumber(ARGV[2])
local waiting = KEY.dependents .. parent
local parent_status = redis.call('HGET', KEY.job .. parent, 'status') or 'gone'
local good = parent_status == 'finished'
if not good and parent_status ~= 'failed' and parent_status ~= 'stopped' and parent_status ~= 'canceled'
  and parent_status ~= 'gone' then
  redis.call('SREM', KEY.outbox, parent)
  return -1
end

local now_ms, stamp = clock()
for _, id in ipairs(redis.call('SPOP', waiting, limit)) do
  local key = KEY.job .. id
  local f = redis.call('HMGET', key, 'status', 'origin', 'seq', 'run_ms', 'failure_ttl', 'secret_ttl')
  local queue, seq = f[2], tonumber(f[3] or 0) + 1
  if f[1] == 'deferred' then
    if not good then
      redis.call('ZREM', KEY.deferred .. queue, id)
      redis.call('ZREM', KEY.expiring, id)
      redis.call('HSET', key, 'status', 'canceled', 'ended_at', stamp, 'seq', seq, 'reason', 'dependency_failed',
        'error', string.format('canceled: the task %s it depends on did not end well (%s)', parent, parent_status))
      retain(id, KEY.canceled .. queue, tonumber(f[5]) or 604800, now_ms, f[6])
      emit(id, seq, 'canceled', 'canceled', now_ms,
        string.format(',"reason":"dependency_failed","dependency":"%s"', parent))
    elseif redis.call('HINCRBY', key, 'pending', -1) <= 0 then
      redis.call('ZREM', KEY.deferred .. queue, id)
      if f[6] then keep_secrets(id, f[6], math.max((tonumber(f[4]) or 0) - now_ms, 0)) end
      if f[4] and tonumber(f[4]) > now_ms then
        redis.call('HSET', key, 'status', 'scheduled', 'seq', seq)
        schedule(id, queue, tonumber(f[4]), now_ms)
        emit(id, seq, 'scheduled', 'scheduled', now_ms, '')
      else
        redis.call('HSET', key, 'status', 'queued', 'enqueued_at', stamp, 'seq', seq)
        enqueue(id, queue, false)
        emit(id, seq, 'queued', 'queued', now_ms, '')
      end
    end
  end
end

local left = redis.call('SCARD', waiting)
if left == 0 then redis.call('SREM', KEY.outbox, parent) end
return left
