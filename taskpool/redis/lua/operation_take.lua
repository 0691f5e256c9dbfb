-- Takes an operation, or keeps it: one program at a time goes on with it, for as long as its lease.
--
-- ARGV[1]  id
-- ARGV[2]  the program
-- ARGV[3]  the lease in ms
-- Returns  {'gone'} | {'ended'} | {'busy'} (another program has it) | {'ok', field, value, ...}

local key = KEY.operation .. ARGV[1]
local f = redis.call('HMGET', key, 'status', 'driver', 'driver_ms')
if f[1] ~= KEY.operation_running then
  redis.call('SREM', KEY.operations_running, ARGV[1])
  return {f[1] and 'ended' or 'gone'}
end
local now_ms = clock()
if f[2] ~= ARGV[2] and tonumber(f[3] or 0) > now_ms then return {'busy'} end
pass_when_full()
redis.call('HSET', key, 'driver', ARGV[2], 'driver_ms', string.format('%.0f', now_ms + tonumber(ARGV[3])))
return {'ok', unpack(redis.call('HGETALL', key))}
