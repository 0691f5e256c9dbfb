-- Reads a part of a queue in dispatch order, records and all, at one moment. Writes nothing.
--
-- ARGV[1]  queue; ARGV[2] where the page before ended, counted from the head; ARGV[3] at most so many. The page also
--          ends behind the record with which it has KEY.queue_page_bytes or more.
-- ARGV[4+] the last tasks that were shown, the last one first: id, when it was queued (enqueued_at), id, ...
--          The page goes on behind the first of these that still waits where it did. None: at ARGV[2].
-- Returns  {now_ms, length of the queue, where the page begins, id, its hash as a flat list, id, ...}

local now_ms = clock()
local key = KEY.queue .. ARGV[1]
local length = redis.pcall('LLEN', key)
if type(length) ~= 'number' then return {now_ms, 0, 0} end -- it is no queue
local offset = math.min(tonumber(ARGV[2]), length)

-- Tasks leave at the head, so a place doesn't keep its number: it is found by who stood before it. Not further from the
-- head than then, unless others came in front.
local function place_of(id)
  if offset > 0 and redis.call('LINDEX', key, offset - 1) == id then return offset - 1 end
  return redis.call('LPOS', key, id, 'MAXLEN', offset + KEY.queue_page_newer)
end

-- If none of them waits there any more, the page begins at the head: what was claimed stood there, and so had all
-- before it; and where all were taken out, showing some again is better than skipping some.
local function begin()
  for at = 4, #ARGV, 2 do
    local f = redis.pcall('HMGET', KEY.job .. ARGV[at], 'status', 'enqueued_at')
    local place = f[1] == RQ.queued and f[2] == ARGV[at + 1] and place_of(ARGV[at])
    if place then return place + 1 end
  end
  return ARGV[4] and 0 or offset
end

local from = begin()
local reply, bytes = {now_ms, length, from}, 0
for _, id in ipairs(redis.call('LRANGE', key, from, from + ARGV[3] - 1)) do
  local fields = redis.pcall('HGETALL', KEY.job .. id)
  reply[#reply + 1] = id
  reply[#reply + 1] = fields.err and {} or fields -- a key that is no record is shown no more than one that is gone
  for at = 2, #fields, 2 do bytes = bytes + #fields[at] end
  if bytes >= KEY.queue_page_bytes then break end
end
return reply
