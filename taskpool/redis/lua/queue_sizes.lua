-- How many tasks of queues are still to end. Writes nothing. What isn't the kind of value that it should be counts as
-- empty.
--
-- ARGV[1+] queues, at most some hundreds
-- Returns  {how many are ready in all, running, scheduled, waiting, of each queue: how many tasks it has of all these}

local reply = {0, 0, 0, 0}

for at, queue in ipairs(ARGV) do
  local places, size = {KEY.queue .. queue, KEY.wip .. queue, KEY.scheduled .. queue, KEY.deferred .. queue}, 0
  if redis.call('EXISTS', unpack(places)) > 0 then
    for kind, place in ipairs(places) do
      local count = redis.pcall(kind == 1 and 'LLEN' or 'ZCARD', place)
      if type(count) == 'number' then
        size = size + count
        reply[kind] = reply[kind] + count
      end
    end
  end
  reply[at + 4] = size
end
return reply
