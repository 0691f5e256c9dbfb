-- Adds tasks, all or none.
--
-- ARGV[1]  n, the number of tasks; then for each:
--          id, queue, type, front ('1' or ''), run_ms (absolute; '' = now), delay_ms ('' = none),
--          expires_ms (from now; '' = never), tags (comma separated), parents (ids, comma separated),
--          secrets (what was taken out of its payload; '' = nothing),
--          events its callback is told of (',done,failed,'; '' = it has none),
--          k, and k alternating field names and values of the task's hash
-- Returns  {'ok', stamp, status of each task in order}
--          {'exists', stamp, status of each, or 'gone'}  when any id exists: this very call was already carried out
--          {'unknown_dependency', id of the parent that doesn't exist}

local FIXED = 12
local n = tonumber(ARGV[1])

local function rq_status(id)
  return redis.call('HGET', KEY.job .. id, 'status')
end

-- How many of the parents a task has to wait for, having told them; or the one that ended, but not well.
local function wait_for(id, parents)
  local pending = {}
  for parent in string.gmatch(parents, '[^,]+') do
    local status = rq_status(parent)
    if status == 'failed' or status == 'stopped' or status == 'canceled' then return 0, parent end
    if status ~= 'finished' then table.insert(pending, parent) end
  end
  for _, parent in ipairs(pending) do redis.call('SADD', KEY.dependents .. parent, id) end
  return #pending
end

-- Is it a repetition, because the answer to the first was lost? Then it is answered again, whatever became of parents.
-- The first of a batch may have run and been purged since: each id counts.
local keys, next_at = {}, 2
for index = 1, n do
  keys[index] = KEY.job .. ARGV[next_at]
  next_at = next_at + FIXED + tonumber(ARGV[next_at + 11])
end
if redis.call('EXISTS', unpack(keys)) > 0 then
  local reply = {'exists', ''}
  for index, key in ipairs(keys) do
    local f = redis.call('HMGET', key, 'status', 'created_at')
    reply[index + 2] = f[1] or 'gone'
    if f[2] then reply[2] = f[2] end
  end
  return reply
end

-- Check: does every parent exist (it may stand earlier in the same call)?
local at, own = 2, {}
for _ = 1, n do
  local id = ARGV[at]
  for parent in string.gmatch(ARGV[at + 8], '[^,]+') do
    if not own[parent] and not rq_status(parent) then
      return {'unknown_dependency', parent}
    end
  end
  own[id] = true
  at = at + FIXED + tonumber(ARGV[at + 11])
end

-- Write.
local now_ms, stamp = clock()
local reply, ready, by_type = {'ok', stamp}, {}, {}
at = 2
for index = 1, n do
  local id, queue, type, front, run_ms, delay_ms, expires_ms, tags, parents =
    ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8]
  local secrets, callback_events, k = ARGV[at + 9], ARGV[at + 10], tonumber(ARGV[at + 11])
  local key = KEY.job .. id
  local status, rq = 'queued', 'queued'
  -- A task's first event tells what never changes and filters ask for; the later ones don't repeat it.
  local more = ',"type":"' .. type .. '","queue":"' .. queue .. '"'
    .. (tags == '' and '' or ',"tags":["' .. string.gsub(tags, ',', '","') .. '"]')

  local due_ms = (run_ms ~= '' and tonumber(run_ms)) or (delay_ms ~= '' and now_ms + tonumber(delay_ms)) or 0
  if due_ms > now_ms then
    status, rq = 'scheduled', 'scheduled'
    redis.call('HSET', key, 'run_ms', string.format('%.0f', due_ms))
  end

  local pending, broken = 0, nil
  if parents ~= '' then
    pending, broken = wait_for(id, parents)
    if broken then
      status, rq = 'canceled', 'canceled'
    elseif pending > 0 then
      status, rq = 'waiting', 'deferred'
      redis.call('HSET', key, 'pending', pending)
    end
  end

  -- One command for all of it; a task that isn't queued yet gets its creation twice instead of a time of queueing.
  redis.call('HSET', key, 'status', rq, 'created_at', stamp, 'seq', '1',
    status == 'queued' and 'enqueued_at' or 'created_at', stamp, unpack(ARGV, at + FIXED, at + FIXED + k - 1))
  if secrets ~= '' then
    redis.call('SET', KEY.secrets .. id, secrets, 'EX',
      redis.call('HGET', key, 'secret_ttl') + math.ceil(math.max(due_ms - now_ms, 0) / 1000))
  end
  by_type[type] = by_type[type] or {}
  table.insert(by_type[type], '0')
  table.insert(by_type[type], id)
  for tag in string.gmatch(tags, '[^,]+') do
    redis.call('ZADD', KEY.by_tag .. tag, 0, id)
    redis.call('SADD', KEY.tags, tag)
  end

  if status == 'queued' then
    if front == '1' then
      enqueue(id, queue, true)
    else
      ready[queue] = ready[queue] or {}
      table.insert(ready[queue], id)
    end
  elseif status == 'scheduled' then
    redis.call('SADD', KEY.queues, KEY.queue .. queue)
    redis.call('ZADD', KEY.scheduled .. queue, string.format('%.3f', due_ms / 1000), id)
  elseif status == 'waiting' then
    redis.call('SADD', KEY.queues, KEY.queue .. queue)
    redis.call('ZADD', KEY.deferred .. queue, string.format('%.3f', now_ms / 1000), id)
  else
    more = more .. string.format(',"reason":"dependency_failed","dependency":"%s"', broken)
    redis.call('HSET', key, 'ended_at', stamp, 'reason', 'dependency_failed',
      'error', string.format('canceled: the task %s it depends on did not end well', broken))
    redis.call('SADD', KEY.queues, KEY.queue .. queue)
    retain(id, KEY.canceled .. queue, tonumber(redis.call('HGET', key, 'failure_ttl')), now_ms, secrets ~= '')
  end
  if expires_ms ~= '' and status ~= 'canceled' then
    local expires_at = string.format('%.0f', now_ms + tonumber(expires_ms))
    redis.call('HSET', key, 'expires_ms', expires_at)
    redis.call('ZADD', KEY.expiring, string.format('%.3f', expires_at / 1000), id)
  end
  if callback_events ~= '' then
    redis.call('HSET', KEY.webhooks_wanted, id, callback_events)
    webhooks_wanted = true
  end
  emit(id, 1, status, status, now_ms, more)
  reply[index + 2] = rq
  at = at + FIXED + k
end

for queue, ids in pairs(ready) do
  redis.call('SADD', KEY.queues, KEY.queue .. queue)
  ring(queue, redis.call('RPUSH', KEY.queue .. queue, unpack(ids)))
end
for type, pairs_ in pairs(by_type) do
  redis.call('ZADD', KEY.by_type .. type, unpack(pairs_))
  redis.call('SADD', KEY.types_used, type)
end
return reply
