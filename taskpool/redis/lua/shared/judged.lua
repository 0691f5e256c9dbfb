-- Failures by plain RQ workers.

-- Whether a plain RQ worker has just failed a task. It may not have been able to read it: then `judge` schedules it
-- again.
local function is_to_be_judged(id)
  local f = redis.call('HMGET', KEY.job .. id, 'reason', 'rq_failure', 'failure_ttl', 'origin')
  if f[1] or f[2] or not tonumber(f[3]) or tonumber(f[3]) < 0 then return false end
  local expires_s = redis.call('ZSCORE', KEY.failed .. f[4], id)
  return expires_s and clock() / 1000 < expires_s - f[3] + KEY.judged_s
end
