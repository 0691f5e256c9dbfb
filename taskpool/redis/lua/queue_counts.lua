-- Counts what queues hold. Writes nothing. What isn't the kind of value that it should be counts as empty.
--
-- ARGV[1+] queues, at most some hundreds
-- Returns  {now_ms, of each queue: false (it is empty), or {ready, running, scheduled, waiting, done, failed, canceled,
--          since when the task at its head is queued, as its record says ('' = unknown)}}

local reply = {(clock())}

local function read(...)
  local value = redis.pcall(...)
  return (type(value) ~= 'table' or not value.err) and value or nil
end

for at, queue in ipairs(ARGV) do
  local place = KEY.queue .. queue
  local registries = {KEY.wip .. queue, KEY.scheduled .. queue, KEY.deferred .. queue, KEY.finished .. queue,
    KEY.failed .. queue, KEY.canceled .. queue}
  reply[at + 1] = false
  if redis.call('EXISTS', place, unpack(registries)) > 0 then
    local row = {read('LLEN', place) or 0}
    for _, registry in ipairs(registries) do row[#row + 1] = read('ZCARD', registry) or 0 end
    local head = row[1] > 0 and redis.call('LINDEX', place, 0)
    row[8] = head and read('HGET', KEY.job .. head, 'enqueued_at') or ''
    reply[at + 1] = row
  end
end
return reply
