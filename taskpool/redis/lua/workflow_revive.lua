-- Gives members of a workflow that is retried new lives, in bounded steps: those without unfinished parents are queued,
-- the others wait. One that can't run again (its secrets or the record of a parent are gone, another task holds its
-- unique key) stays as it is.
--
-- ARGV[1]  id of the workflow
-- ARGV[2]  about how many members and edges this step reads
-- Returns  'more' | 'end'

local id, key, left = ARGV[1], KEY.workflow .. ARGV[1], tonumber(ARGV[2])
local now_ms, stamp = clock()
local reviving = key .. KEY.workflow_reviving
local edge, life = edges(), lives()

local function revive(member)
  local f = life.record_of(member)
  if not f.status or not RQ_SET.terminal[f.status] then return end
  local list = edge.list_of(f.dependency_ids, f.edges)
  left = left - #list
  local pending, broken = edge.weigh(list)
  if broken or life.obstacle(member, f, now_ms) then return end
  if f.status == RQ.done then
    redis.call('ZREM', KEY.finished .. f.origin, member)
    redis.call('HDEL', KEY.job .. member, 'result')
    redis.call('DEL', KEY.checkpoint .. member) -- that is the state of one that has done all of its work
  end
  life.begin(member, f, list, pending, now_ms, stamp)
  if redis.call('EXISTS', KEY.revivable .. member) == 1 then redis.call('SADD', KEY.outbox, member) end
end

pass_when_full()
if redis.call('HGET', key, 'stop') then redis.call('DEL', reviving) end
while left > 0 do
  local number = redis.call('LPOP', reviving)
  if not number then break end
  left = left - 1
  revive(member_id(id, tonumber(number)))
end
if redis.call('EXISTS', reviving) == 1 then return 'more' end
redis.call('SREM', KEY.workflows_reviving, id)
local f = redis.call('HMGET', key, 'status', 'ended', 'total', 'stop')
if f[1] then
  members().settle(id, {status = f[1], ended = tonumber(f[2]), total = tonumber(f[3]), stop = f[4]}, now_ms, stamp)
end
return 'end'
