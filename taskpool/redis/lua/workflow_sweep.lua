-- Compares how members of workflows were counted last with what has become of them, and counts them anew: RQ's tools and
-- plain RQ workers run none of our scripts. A member that hasn't ended, and whose record is gone, counts as removed. A
-- backstop, in bounded steps round the workflows of an index. It goes on where the last step of any pool ended.
--
-- KEYS[1]  the index: zset of workflows, all with score 0
-- ARGV[1]  the most members to look at
-- Returns  'more' | 'end' (the next step begins at the start)

local index, swept, left = KEYS[1], KEYS[1] .. KEY.swept_of, tonumber(ARGV[1])
local now_ms, stamp = clock()
local last, first = string.match(redis.call('GET', swept) or '', '^(%w*) (%d+)$')
local id = last and last ~= '' and redis.call('ZSCORE', index, last) and last
local number = id and tonumber(first) or 1
if not id then id = redis.call('ZRANGEBYLEX', index, last and last ~= '' and '(' .. last or '-', '+', 'LIMIT', 0, 1)[1] end
if not id and not last then return 'end' end

-- Keeps the record of a member that another program has ended until the workflow is removed.
local REGISTRY = RQ_MAP.registry
local function keep(member, status)
  if not REGISTRY[status] then return end
  redis.call('PERSIST', KEY.job .. member)
  redis.call('ZADD', REGISTRY[status] .. (redis.call('HGET', KEY.job .. member, 'origin') or ''), 'XX', '+inf', member)
end

pass_when_full()
while id and left > 0 do
  local key = KEY.workflow .. id
  local f = redis.call('HMGET', key, 'reserved', 'chunks')
  local is_stored = tonumber(f[2] or 0) <= 0 -- else a member without a record may still be to come
  local to = math.min(tonumber(f[1] or 0), number + left - 1)
  local counted = redis.call('GETRANGE', key .. KEY.workflow_counted, number - 1, to - 1)
  for at = number, to do
    local letter = string.sub(counted, at - number + 1, at - number + 1)
    local member = member_id(id, at)
    local status = redis.call('HGET', KEY.job .. member, 'status')
    if status and members().differs(letter, status) and not (status == RQ.failed and is_to_be_judged(member))
      or not status and is_stored then
      members().count(member, id, now_ms, stamp)
      keep(member, status)
    end
  end
  left = left - math.max(to - number + 1, 1)
  number = to + 1
  if number > tonumber(f[1] or 0) then
    last, number = id, 1
    id = redis.call('ZRANGEBYLEX', index, '(' .. id, '+', 'LIMIT', 0, 1)[1]
  end
end
if not id then
  redis.call('DEL', swept)
  return 'end'
end
redis.call('SET', swept, id .. ' ' .. number, 'EX', KEY.swept_ttl_s)
return 'more'
