-- Corrects times that were computed from a duration after a step of Redis's clock (see step.lua).

-- What is kept beside a time that was computed from a duration at `now_ms`, so that it can be corrected after a step of
-- Redis's clock: the sum of all known steps. If the time differs from what the pools have seen last,
-- the clock may have been stepped, and no pool has noticed yet: then that difference stands behind it,
-- "sum:difference".
local function clock_base(now_ms)
  local f = redis.call('HMGET', KEY.clock, 'stepped_ms', 'seen_ms')
  local base, ahead_ms = f[1] or '0', now_ms - (tonumber(f[2]) or now_ms)
  if ahead_ms >= 0 and ahead_ms <= KEY.seen_often_ms then return base end
  return string.format('%s:%.0f', base, ahead_ms)
end

-- By how many ms such a time must be moved now; nil: it is right. `base` was kept beside it (see `clock_base`). A time
-- that was computed after the step, but before any pool noticed it, is right by the new clock: the difference in `base`
-- is about as large as the step.
local function moved_ms(base)
  local sum = redis.call('HGET', KEY.clock, 'stepped_ms') or '0'
  local from, ahead_ms = string.match(base or '', '^(-?%d+):?(-?%d*)$')
  if not from or from == sum then return nil end
  local step_ms = ahead_ms ~= '' and tonumber(redis.call('HGET', KEY.clock, 'after:' .. from))
  local is_by_new_clock = step_ms and math.abs(ahead_ms - step_ms) < math.abs(step_ms) / 2
  return sum - from - (is_by_new_clock and step_ms or 0)
end

-- When a task expires, corrected by the steps of Redis's clock since that was computed.
local function expiry_of(expires_ms, base)
  return expires_ms + (moved_ms(base) or 0)
end
