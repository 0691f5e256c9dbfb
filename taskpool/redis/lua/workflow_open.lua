-- Finds members of a stopping workflow that still wait or run, in one bounded step.
--
-- ARGV[1]  id of the workflow; ARGV[2] the number of the first member to look at; ARGV[3] the most to look at
-- Returns  {the number to go on with (0: there are no more), grace in s, force ('1' or ''), {ids that wait}, {ids that run
--          and haven't been asked to stop like that}}; {0} when there is nothing to stop

local id, key, first, most = ARGV[1], KEY.workflow .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local f = redis.call('HMGET', key, 'status', 'reserved', 'stop_grace', 'stop_force')
if f[1] ~= STATUS.stopping then return {0} end
local last = math.min(first + most - 1, tonumber(f[2]))
local counted = redis.call('GETRANGE', key .. KEY.workflow_counted, first - 1, last - 1)
local waiting, running = {}, {}
for number = first, last do
  local letter = string.sub(counted, number - first + 1, number - first + 1)
  if not string.find(KEY.counted_letters, letter, 1, true) or letter == '' then
    local member = member_id(id, number)
    local g = redis.call('HMGET', KEY.job .. member, 'status', 'stop_ms', 'stop_force')
    if RQ_SET.cancelable[g[1]] then
      waiting[#waiting + 1] = member
    elseif g[1] == RQ.in_progress and (not g[2] or f[4] == '1' and g[3] ~= '1') then
      running[#running + 1] = member
    end
  end
end
return {last < tonumber(f[2]) and last + 1 or 0, f[3], f[4], waiting, running}
