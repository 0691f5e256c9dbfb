-- Corrects due times after a step of Redis's clock: those that were computed from a duration (a delay, a back-off, an
-- expiry, the time for an answer). A time that a submission named stays. One bounded step through a sorted set; each record says up to which
-- sum of steps its time is right, so several pools may do it at once, and again.
--
-- ARGV[1]  queue: its scheduled tasks; '' = the tasks that expire; KEY.of_people = the tasks that wait for a person
-- ARGV[2]  cursor of the set; ARGV[3] about how many entries it looks at
-- Returns  the cursor to go on from ('0' = this was the last)

local registry, based_on, field = KEY.scheduled .. ARGV[1], 'run_clock', 'run_ms'
if ARGV[1] == '' then registry, based_on, field = KEY.expiring, 'expires_clock', 'expires_ms' end
if ARGV[1] == KEY.of_people then registry, based_on, field = KEY.confirmations, 'asked_clock', 'answer_by_ms' end
local sum = redis.call('HGET', KEY.clock, 'stepped_ms') or '0'
pass_when_full()
local page = redis.call('ZSCAN', registry, ARGV[2], 'COUNT', ARGV[3])
for at = 1, #page[2], 2 do
  local id = page[2][at]
  local moved = moved_ms(redis.call('HGET', KEY.job .. id, based_on))
  if moved then
    local due_ms = page[2][at + 1] * 1000 + moved
    redis.call('ZADD', registry, 'XX', string.format('%.3f', due_ms / 1000), id)
    redis.call('HSET', KEY.job .. id, field, string.format('%.0f', due_ms), based_on, sum)
  end
end
return page[1]
