-- Takes an operation or a redrive, or keeps it: one program at a time goes on with it, for as long as its lease.
--
-- ARGV[1]  the key of its hash
-- ARGV[2]  the key of the set of those that run; ARGV[3] its name there
-- ARGV[4]  the program; ARGV[5] its lease in ms
-- Returns  {'gone'} | {'ended'} | {'busy'} (another program has it) | {'ok', field, value, ...}

local key = ARGV[1]
local f = redis.call('HMGET', key, 'status', 'driver', 'driver_ms')
if f[1] ~= KEY.operation_running then
  redis.call('SREM', ARGV[2], ARGV[3])
  return {f[1] and 'ended' or 'gone'}
end
local now_ms = clock()
if f[2] ~= ARGV[4] and tonumber(f[3] or 0) > now_ms then return {'busy'} end
pass_when_full()
redis.call('HSET', key, 'driver', ARGV[4], 'driver_ms', string.format('%.0f', now_ms + tonumber(ARGV[5])))
return {'ok', unpack(redis.call('HGETALL', key))}
