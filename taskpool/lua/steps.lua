-- What scripts need that know of steps of Redis's clock. Those that run for every task ask for the sum themselves, and only
-- where a task has a delay or an expiry: each function here costs every call of a script.

-- The sum of all steps of Redis's clock in ms, as far as they are known (see step.lua). A time that was computed from a
-- duration is kept with it, so that it can be corrected by the steps that come later.
local function stepped_ms()
  return tonumber(redis.call('HGET', KEY.clock, 'stepped_ms') or 0)
end

-- When a task expires, corrected by the steps of Redis's clock since that was computed.
local function expiry_of(expires_ms, based_on_ms)
  return expires_ms + (based_on_ms and stepped_ms() - based_on_ms or 0)
end
