-- Notes that Redis takes writes. Each round of each pool's housekeeping runs it. Tells for how long writes have worked and
-- Redis's clock has run without a step: no lease is taken back before every pool had that long to renew its own.
--
-- ARGV[1]  for how many ms the caller itself has seen that
-- ARGV[2]  the longest gap in ms between two rounds of any pools that costs no lease
-- ARGV[3]  the caller's lease in ms
-- ARGV[4]  the sum of steps up to which the caller has corrected all due times ('' = none)
-- Returns  {now_ms, for how many ms that is known, sum of all steps of the clock in ms (see step.lua), '1' when all due
--           times are corrected by that (else '0'), by how many ms the clock is behind the last round (0 = it isn't)}

pass_when_full()
local now_ms = clock()
local f = redis.call('HMGET', KEY.clock, 'seen_ms', 'since_ms', 'stepped_ms', 'corrected_ms', 'lease_ms')
local seen_ms, since_ms = tonumber(f[1]), tonumber(f[2])
local goes_on = seen_ms and since_ms and since_ms <= now_ms and seen_ms <= now_ms and now_ms - seen_ms <= tonumber(ARGV[2])
if not goes_on then since_ms = now_ms - tonumber(ARGV[1]) end
redis.call('HSET', KEY.clock, 'seen_ms', string.format('%.0f', now_ms), 'since_ms', string.format('%.0f', since_ms))
if tonumber(f[5] or 0) < tonumber(ARGV[3]) then redis.call('HSET', KEY.clock, 'lease_ms', ARGV[3]) end

local stepped_ms, corrected_ms = f[3] or '0', f[4] or '0'
if ARGV[4] == stepped_ms and corrected_ms ~= stepped_ms then
  redis.call('HSET', KEY.clock, 'corrected_ms', stepped_ms)
  corrected_ms = stepped_ms
end
return {now_ms, now_ms - since_ms, tonumber(stepped_ms), corrected_ms == stepped_ms and '1' or '0',
  math.max((seen_ms or 0) - now_ms, 0)}
