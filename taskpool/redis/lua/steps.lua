-- Corrects times that were computed from a duration after a step of Redis's clock (see step.lua).

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
