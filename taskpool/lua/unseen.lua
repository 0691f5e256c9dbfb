-- Marks claims that nobody saw: Redis carried them out, and the process that sent them, frozen maybe, runs nothing of the
-- kind. When such a lease ends, `crash` refuses: there was no attempt that could have crashed.
--
-- ARGV[1]  worker name
-- ARGV[2]  how old a claim must be, in ms: an answer that is still on its way isn't meant
-- ARGV[3]  and on: the ids of the attempts that the worker runs
-- Returns  how many were marked now

local worker, least_s = ARGV[1], tonumber(ARGV[2]) / 1000
local now_s, runs, marked = clock() / 1000, {}, 0
for at = 3, #ARGV do runs[ARGV[at]] = true end
pass_when_full()
for _, member in ipairs(redis.call('SMEMBERS', KEY.worker .. worker .. ':executions')) do
  if not runs[string.match(member, ':(.*)')] then
    local f = redis.call('HMGET', KEY.execution .. member, 'created_at', 'last_heartbeat', 'unseen')
    if f[1] and f[1] == f[2] and not f[3] and now_s - f[1] >= least_s then
      redis.call('HSET', KEY.execution .. member, 'unseen', '1')
      marked = marked + 1
    end
  end
end
return marked
