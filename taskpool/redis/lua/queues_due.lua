-- Says of queues what housekeeping has to do for them, and forgets those that have been empty for a while: they hold no
-- task in any status, and no worker serves them. What isn't the kind of value that it should be counts as nothing to
-- do.
--
-- ARGV[1]  the latest time in ms that counts as now ('' = any)
-- ARGV[2+] queues
-- Returns  {of each queue: its marks, ms until a scheduled task is due, ms until anything is due ('' = nothing will be)}
--          marks: l = leases have ended, s = scheduled tasks are due, e = records of ended tasks are, w = tasks wait for
--          others, v = it has workers, x = it was forgotten

local now_ms = clock()
if ARGV[1] ~= '' then now_ms = math.min(now_ms, tonumber(ARGV[1])) end
local ENDED = {KEY.finished, KEY.failed, KEY.canceled}

-- When the first entry of a sorted set is due, in ms; nil: never.
local function first_ms(key)
  local score = tonumber((redis.pcall('ZRANGE', key, 0, 0, 'WITHSCORES') or {})[2])
  return score and score < math.huge and score * 1000 or nil
end

local function is_empty(queue)
  return redis.call('EXISTS', KEY.queue .. queue, KEY.queue .. queue .. KEY.intermediate, KEY.wip .. queue,
    KEY.scheduled .. queue, KEY.deferred .. queue, KEY.finished .. queue, KEY.failed .. queue, KEY.canceled .. queue,
    KEY.workers_of .. queue) == 0
end

local function look_at(queue)
  local marks, scheduled_ms, next_ms = '', first_ms(KEY.scheduled .. queue), nil
  local lease_ms = first_ms(KEY.wip .. queue)
  -- Ours are entered WIP_GRACE_S late, a plain RQ worker's are not.
  if lease_ms then next_ms = lease_ms - KEY.wip_grace_s * 1000 end
  if next_ms and next_ms <= now_ms then marks = 'l' end
  if scheduled_ms then
    next_ms = math.min(next_ms or scheduled_ms, scheduled_ms)
    if scheduled_ms <= now_ms then marks = marks .. 's' end
  end
  for _, registry in ipairs(ENDED) do
    local ended_ms = first_ms(registry .. queue)
    if ended_ms then
      next_ms = math.min(next_ms or ended_ms, ended_ms)
      if ended_ms <= now_ms then marks = marks .. 'e' end
    end
  end
  if redis.call('EXISTS', KEY.deferred .. queue) == 1 then marks = marks .. 'w' end
  if redis.call('EXISTS', KEY.workers_of .. queue) == 1 then marks = marks .. 'v' end
  local function until_ms(time_ms)
    return time_ms and string.format('%.0f', math.max(time_ms - now_ms, 0)) or ''
  end
  return marks, until_ms(scheduled_ms), until_ms(next_ms)
end

local function forget(queue)
  redis.call('SREM', KEY.queues, KEY.queue .. queue)
  redis.pcall('ZREM', KEY.empty_queues, queue)
  redis.pcall('ZREM', KEY.foreign_queues, queue)
  redis.call('DEL', KEY.doorbell .. queue, KEY.foreign .. queue, KEY.swept .. queue)
end

local reply = {}
for at = 2, #ARGV do
  local queue = ARGV[at]
  local marks, scheduled_ms, next_ms = '', '', ''
  if not is_empty(queue) then
    marks, scheduled_ms, next_ms = look_at(queue)
    redis.pcall('ZREM', KEY.empty_queues, queue)
  else
    local since = redis.pcall('ZSCORE', KEY.empty_queues, queue)
    local since_ms = type(since) == 'string' and tonumber(since)
    if since_ms and since_ms <= now_ms - KEY.queue_kept_s * 1000 then
      marks = 'x'
      forget(queue)
    elseif not since_ms or since_ms > now_ms then -- or Redis's clock was set back
      pass_when_full()
      redis.pcall('ZADD', KEY.empty_queues, now_ms, queue)
    end
  end
  reply[#reply + 1] = marks
  reply[#reply + 1] = scheduled_ms
  reply[#reply + 1] = next_ms
end
return reply
