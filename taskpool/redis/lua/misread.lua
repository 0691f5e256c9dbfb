-- Finds tasks that a plain RQ worker failed: what it wrote as the reason tells whether it could read them at all. Looks
-- at the failed tasks that expire last, which are mostly the newest, if any failed since the last look; and at one more
-- page.
--
-- ARGV[1]  tasks to look at in each queue, at most
-- ARGV[2]  tasks to answer with, at most
-- ARGV[3+] for each queue: its name, what the last look answered as its state ('' = look), the offset of the other page
--          ('' = none)
-- Returns  {state and next offset of each queue..., id, id of its entry in RQ's result stream, its traceback as RQ stores it, ...}

local most, most_found = tonumber(ARGV[1]), tonumber(ARGV[2])
local states, found = {}, {}
local is_task = foreign_jobs().is_task

-- What a command answers; nothing where a key is not of the kind that it should be.
local function read(...)
  local reply = redis.pcall(...)
  return type(reply) == 'table' and reply.err and {} or reply
end

-- The last result of a task, if an RQ worker wrote it and it has not been judged yet.
local function look(id)
  local f = fields_of_record(id, 'status', 'type', 'attempt_id', 'rq_failure')
  if f[1] ~= RQ.failed or not is_task(id, f[2], '') then return end
  local entry = read('XREVRANGE', KEY.results .. id, '+', '-', 'COUNT', 1)[1]
  if not entry or entry[1] == f[4] then return end
  local fields = {}
  for at = 1, #entry[2], 2 do fields[entry[2][at]] = entry[2][at + 1] end
  if fields.execution_id and fields.execution_id ~= f[3] and fields.exc_string then
    for _, part in ipairs({id, entry[1], fields.exc_string}) do table.insert(found, part) end
  end
end

-- Whether it came to the end of the page.
local function look_at(registry, offset)
  for _, id in ipairs(read('ZREVRANGE', registry, offset, offset + most - 1)) do
    if #found >= most_found * 3 then return false end
    look(id)
  end
  return true
end

for at = 3, #ARGV, 3 do
  local registry, offset = KEY.failed .. ARGV[at], tonumber(ARGV[at + 2])
  local last = read('ZREVRANGE', registry, 0, 0, 'WITHSCORES')
  local card = #last > 0 and redis.call('ZCARD', registry) or 0
  local state = string.format('%d %s %s', card, last[1] or '', last[2] or '')
  if state ~= ARGV[at + 1] and not look_at(registry, 0) then state = '' end
  if offset and look_at(registry, offset) then offset = offset + most < card and offset + most or 0 end
  table.insert(states, state)
  table.insert(states, offset or 0)
end
for _, part in ipairs(found) do table.insert(states, part) end
return states
