-- Looks for tasks among the jobs at the front of a queue that claims pass over as foreign. There should be none: what
-- is put in front of them is seen by the next claim, unless RQ's workers take the jobs that it was recognised by
-- meanwhile. Such a task stands near the head, so each call looks there most closely.
--
-- ARGV[1]  queue; ARGV[2] offset; ARGV[3] ids to look at behind the head, at most
-- ARGV[4]  RQ functions that are run here, as for `claim`
-- Returns  the offset to go on from; 0 at the end, or when a task was found: the next claim begins at the head

local queue, offset, most, functions = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ',' .. string.sub(ARGV[4], 2) .. ','
local LOOKS = 20 -- behind the head, the data of so many records is read
local HEAD, HEAD_COST = 100, 200 -- so many ids near the head, unless their data takes longer to read
local passed = 0
for _, known in ipairs(redis.call('HVALS', KEY.foreign .. queue)) do
  passed = math.max(passed, tonumber(string.match(known, '^%d+')) or 0)
end
if passed == 0 then return 0 end

local foreign = foreign_jobs()

-- Whether a claim of this pool would take a job with this data; and what it cost to find out.
local function is_claimed(id, data)
  if is_stored_by_us(data) then return true, 1 end
  local name, cost = foreign.called_function(data)
  if not name or not string.find(id, '^[%w_-]+$') then return false, cost end
  return name == KEY.entry_point or string.find(functions, ',' .. name .. ',', 1, true) and not foreign.needs_rq(id), cost
end

local function is_one_at_head()
  local spent = 0
  for _, id in ipairs(redis.call('LRANGE', KEY.queue .. queue, 0, math.min(HEAD, passed) - 1)) do
    local data = fields_of_record(id, 'data')[1]
    local is_one, cost = is_claimed(id, data or '')
    spent = spent + cost
    if is_one then return true end
    if spent >= HEAD_COST then return false end
  end
  return false
end

local function is_one_behind(from, to)
  for _, id in ipairs(redis.call('LRANGE', KEY.queue .. queue, from, to)) do
    local type = fields_of_record(id, 'type')[1]
    if type and type ~= KEY.unknown_type and LOOKS > 0 then
      LOOKS = LOOKS - 1
      local data = fields_of_record(id, 'data')[1]
      if not data or is_claimed(id, data) then return true end
    end
  end
  return false
end

local last = math.min(offset + most, passed) - 1
if is_one_at_head() or last >= offset and is_one_behind(offset, last) then
  redis.call('DEL', KEY.foreign .. queue)
  return 0
end
return last >= offset and last + 1 < passed and last + 1 or 0
