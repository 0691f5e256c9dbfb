-- Reads a part of a queue in dispatch order, records and all, at one moment. Writes nothing.
--
-- ARGV[1]  queue; ARGV[2] offset from the head; ARGV[3] at most so many
-- Returns  {now_ms, length of the queue, id, its hash as a flat list, id, ...}

local now_ms = clock()
local key = KEY.queue .. ARGV[1]
local reply = {now_ms, redis.call('LLEN', key)}
for _, id in ipairs(redis.call('LRANGE', key, ARGV[2], ARGV[2] + ARGV[3] - 1)) do
  reply[#reply + 1] = id
  reply[#reply + 1] = redis.call('HGETALL', KEY.job .. id)
end
return reply
