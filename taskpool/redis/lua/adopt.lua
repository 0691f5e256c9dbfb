-- Queues tasks again that a plain RQ worker took and never started. RQ's worker of one queue moves an id into the list
-- `rq:queue:{queue}:intermediate`, and takes it out when the job starts; one that dies in between leaves it there.
--
-- A task counts as left behind when it has stood there for a while, still queued, and RQ shows no execution of it. RQ's
-- own maintenance fails such jobs after two of its passes, at least 60 s apart: the one that comes first has taken the
-- id out of the list. Jobs that aren't tasks are left to RQ.
--
-- ARGV[1]  seconds a task must have been there
-- ARGV[2]  ids to look at in each queue, at most
-- ARGV[3]  RQ functions that are run here, as for `claim`
-- ARGV[4+] for each queue: its name, the offset to go on from
-- Returns  {how many were queued again, the next offset of each queue}

local wait_s, most, functions = tonumber(ARGV[1]), tonumber(ARGV[2]), ',' .. string.sub(ARGV[3], 2) .. ','
local now_ms, stamp = clock()
local reply = {0}
local is_task = foreign_jobs().is_task

-- Whether an RQ worker has begun to run it. Its heartbeats keep the execution's hash alive.
local function is_begun(id)
  for _, execution in ipairs(redis.call('ZREVRANGE', KEY.executions .. id, 0, 9)) do
    if redis.call('EXISTS', KEY.execution .. id .. ':' .. execution) == 1 then return true end
  end
  return false
end

for at = 4, #ARGV, 2 do
  local queue, offset = ARGV[at], tonumber(ARGV[at + 1])
  local place = KEY.queue .. queue .. KEY.intermediate
  local ids = redis.pcall('LRANGE', place, offset, offset + most - 1)
  local taken = 0
  if #ids > 0 then pass_when_full() end
  for _, id in ipairs(ids) do
    local f = fields_of_record(id, 'status', 'type', 'enqueued_at')
    local is_gone = not f[1] and redis.call('EXISTS', KEY.job .. id) == 0
    if is_gone or (is_task(id, f[2], functions) and not is_begun(id)) then
      -- When it was first seen, and when it had been queued then: one that was started meanwhile, and queued and taken
      -- again, has only just come.
      local seen = KEY.stuck .. id
      local since_ms, enqueued_at = string.match(redis.call('GET', seen) or '', '^(%d+) (.*)$')
      if not since_ms or enqueued_at ~= (f[3] or '') then
        redis.call('SET', seen, string.format('%.0f %s', now_ms, f[3] or ''), 'EX', wait_s + KEY.first_seen_slack_s)
      elseif now_ms - since_ms >= wait_s * 1000 then
        redis.call('LREM', place, 1, id)
        redis.call('DEL', seen, place .. KEY.first_seen .. id)
        taken = taken + 1
        -- One with another status has been ended or started since: only its id was left over.
        if f[1] == RQ.queued and not redis.call('LPOS', KEY.queue .. queue, id, 'MAXLEN', 10000) then
          redis.call('HSET', KEY.job .. id, 'enqueued_at', stamp)
          enqueue(id, queue, true)
          reply[1] = reply[1] + 1
        end
      end
    end
  end
  reply[#reply + 1] = #ids < most and 0 or offset + most - taken
end
return reply
