-- Marks claims that no process saw: Redis carried them out, but the process that sent them (it was frozen, perhaps)
-- doesn't run these tasks. When such a lease ends, `crash` refuses: there was no attempt that could have crashed.
--
-- The list of what the worker runs may arrive late: the claim can be newer than the list. So a claim is marked only
-- when two lists lack it. The second list was read after the answer to the first one, so it is newer than the claim.
--
-- ARGV[1]  worker name
-- ARGV[2]  how old a claim must be, in ms: an answer that is still on its way isn't meant
-- ARGV[3]  the number of this list: a call that is sent again counts once
-- ARGV[4]  and on: the ids of the attempts that the worker runs
-- Returns  how many were marked now

local worker, least_s, list = ARGV[1], tonumber(ARGV[2]) / 1000, ARGV[3]
local now_s, runs, marked = clock() / 1000, {}, 0
for at = 4, #ARGV do runs[ARGV[at]] = true end
pass_when_full()
for _, member in ipairs(redis.call('SMEMBERS', KEY.worker .. worker .. ':executions')) do
  if not runs[string.match(member, ':(.*)')] then
    local key = KEY.execution .. member
    local f = redis.call('HMGET', key, 'created_at', 'last_heartbeat', 'unseen', 'missed_by')
    if f[1] and f[1] == f[2] and not f[3] then
      if not f[4] then
        redis.call('HSET', key, 'missed_by', list)
      elseif f[4] ~= list and now_s - f[1] >= least_s then
        redis.call('HSET', key, 'unseen', '1')
        marked = marked + 1
      end
    end
  end
end
return marked
