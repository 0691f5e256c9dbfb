-- Looks for tasks among the jobs at the front of a queue that claims pass over as foreign. There should be none: what is put
-- in front of them is seen by the next claim, unless RQ's workers take the jobs that it was recognised by meanwhile.
--
-- ARGV[1]  queue; ARGV[2] offset; ARGV[3] ids to look at, at most
-- Returns  the offset to go on from; 0 at the end, or when a task was found: the next claim begins at the head

local queue, offset, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local LOOKS = 20 -- the data of so many records is read
local passed = 0
for _, known in ipairs(redis.call('HVALS', KEY.foreign .. queue)) do
  passed = math.max(passed, tonumber(string.match(known, '^%d+')) or 0)
end
local last = math.min(offset + most, passed) - 1
if last < offset then return 0 end
local _, is_task = foreign_jobs()
for _, id in ipairs(redis.call('LRANGE', KEY.queue .. queue, offset, last)) do
  local type = fields_of_record(id, 'type')[1]
  if type and type ~= KEY.unknown_type and LOOKS > 0 then
    LOOKS = LOOKS - 1
    local data = fields_of_record(id, 'data')[1]
    if not data or is_stored_by_us(data) or is_task(id, nil, '') then
      redis.call('DEL', KEY.foreign .. queue)
      return 0
    end
  end
end
return last + 1 < passed and last + 1 or 0
