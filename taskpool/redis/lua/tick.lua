-- Notes that Redis takes writes. Each round of each pool's housekeeping runs it. Tells for how long writes have worked
-- and Redis's clock has run without a step: no lease is taken back before every pool had that long to renew its own.
--
-- ARGV[1]  for how many ms the caller itself has seen that
-- ARGV[2]  the longest gap in ms between two rounds of any pools that costs no lease
-- ARGV[3]  the caller's lease in ms
-- ARGV[4]  the sum of steps up to which the caller has corrected all due times ('' = none)
-- ARGV[5]  what the time must be now, if the clock wasn't stepped since the caller's last round ('' = it can't tell)
-- ARGV[6]  by how many ms the time may differ from that; ARGV[7] the sum of steps that the caller knows of
-- ARGV[8]  the key of the turn, if pools share the housekeeping; '' = the caller always does it
-- ARGV[9]  the caller. It is the housekeeper if no other pool is
-- Returns  {now_ms, for how many ms that is known, sum of all steps of the clock in ms (see step.lua), '1' when all due
--           times are corrected by that (else '0'), by how many ms the clock is behind the last round (0 = it isn't), the
--           time up to which something is due, '1' if the caller is the housekeeper (else '0')}

pass_when_full()
local now_ms = clock()
local f = redis.pcall('HMGET', KEY.clock, 'seen_ms', 'since_ms', 'stepped_ms', 'corrected_ms', 'lease_ms')
if f.err or (f[3] and not tonumber(f[3])) then -- another program wrote there: all that was known is lost
  redis.call('DEL', KEY.clock)
  f = {}
end
local seen_ms, since_ms = tonumber(f[1]), tonumber(f[2])
local stepped_ms, corrected_ms = f[3] or '0', f[4] or '0'

-- What the caller has seen counts unless it is about to find a step.
local is_as_expected = ARGV[5] ~= '' and math.abs(now_ms - ARGV[5]) < tonumber(ARGV[6])
local steady_since_ms = now_ms - (is_as_expected and ARGV[7] == stepped_ms and tonumber(ARGV[1]) or 0)
local goes_on = seen_ms and since_ms and since_ms <= now_ms and seen_ms <= now_ms and now_ms - seen_ms <= tonumber(ARGV[2])
since_ms = goes_on and math.min(since_ms, steady_since_ms) or steady_since_ms
redis.call('HSET', KEY.clock, 'since_ms', string.format('%.0f', since_ms))
-- A pool that has just started to look can't distinguish a step from the time in which no pool lived. Until the others had
-- the time to notice a step, `seen_ms` stays (`clock_base` compares with it), and nothing new is due.
local is_trusted = not seen_ms or (now_ms >= seen_ms and now_ms - seen_ms <= KEY.seen_often_ms)
  or (is_as_expected and tonumber(ARGV[1]) >= KEY.seen_often_ms)
if is_trusted then redis.call('HSET', KEY.clock, 'seen_ms', string.format('%.0f', now_ms)) end
if (tonumber(f[5]) or 0) < tonumber(ARGV[3]) then redis.call('HSET', KEY.clock, 'lease_ms', ARGV[3]) end

if ARGV[4] == stepped_ms and corrected_ms ~= stepped_ms then
  redis.call('HSET', KEY.clock, 'corrected_ms', stepped_ms)
  corrected_ms = stepped_ms
end
local function is_housekeeper(turn, pool)
  if turn == '' then return true end
  local other = redis.pcall('GET', turn)
  if type(other) == 'string' and other ~= pool then
    -- A key that another program wrote has no end. One that lasts for longer was written before the clock was set back.
    local left_ms = redis.call('PTTL', turn)
    if left_ms >= 0 and left_ms <= KEY.turn_ms then return false end
  end
  redis.call('SET', turn, pool, 'PX', KEY.turn_ms)
  return true
end

return {now_ms, now_ms - since_ms, tonumber(stepped_ms), corrected_ms == stepped_ms and '1' or '0',
  math.max((seen_ms or 0) - now_ms, 0), is_trusted and now_ms or math.min(seen_ms, now_ms),
  is_housekeeper(ARGV[8], ARGV[9]) and '1' or '0'}
