-- Marks claims that no process saw: Redis carried them out, but the process that sent them (it was frozen, perhaps)
-- doesn't run these tasks. When such a lease ends, `crash` refuses: there was no attempt that could have crashed.
--
-- The list of what the worker runs may arrive late: the claim can be newer than the list. So a claim is marked only
-- when two lists lack it. The second list was read after the answer to the first one, so it is newer than the claim.
--
-- The marks of a worker stand in one hash, by the name of the attempt: the list that lacked it first, and when that was; or
-- 'unseen'. What is in a later list after all, or has ended, leaves it.
--
-- ARGV[1]  worker name
-- ARGV[2]  how long a claim must have been missing, in ms: an answer that is still on its way isn't meant
-- ARGV[3]  the number of this list: a call that is sent again counts once
-- ARGV[4]  and on: the ids of the attempts that the worker runs
-- Returns  how many were marked now

local worker, least_ms, list = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local key, now_ms, runs, marked = KEY.unseen .. worker, clock(), {}, 0
for at = 4, #ARGV do runs[ARGV[at]] = true end
pass_when_full()
local found = redis.call('HGETALL', key)
local marks, kept = {}, {}
for at = 1, #found, 2 do marks[found[at]] = found[at + 1] end
for _, member in ipairs(redis.call('SMEMBERS', KEY.attempts .. worker)) do
  -- A heartbeat, which shows it to RQ's tools, is sent only for what was in a list.
  local is_missing = not runs[string.match(member, ':(.*)')] and redis.call('EXISTS', KEY.execution .. member) == 0
  if is_missing then
    local mark = marks[member] or list .. ' ' .. string.format('%.0f', now_ms)
    local first, since_ms = string.match(mark, '^(%S+) (%d+)$')
    if first and first ~= list and now_ms - since_ms >= least_ms then
      mark, marked = 'unseen', marked + 1
    end
    kept[#kept + 1], kept[#kept + 2] = member, mark
  end
end
if #found > 0 then redis.call('DEL', key) end
for at = 1, #kept, 2 do redis.call('HSET', key, kept[at], kept[at + 1]) end
if #kept > 0 then redis.call('EXPIRE', key, KEY.unseen_kept_s) end
-- What a dead worker leaves there can't always be told to be its own (see crash.lua).
redis.call('EXPIRE', KEY.attempts .. worker, KEY.attempts_kept_s)
return marked
