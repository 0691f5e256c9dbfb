-- Takes back the cancelation of a task: it waits again for what it waited for. One that was queued goes to the tail of its
-- queue. The tasks that were canceled because of it are revived by `release`, which finds it in the outbox.
--
-- ARGV[1]  id
-- ARGV[2]  mark of the call that canceled it
-- ARGV[3]  mark of this call, by which it is known when it is sent again
-- ARGV[4]  the program that goes on with the operation of this mark; nil = there is none
-- Returns  'ok' | 'children' (tasks that were canceled because of it are in the outbox); both also when sent again
--          'gone' | 'other' (it was canceled by another call) | 'dependency REF WORD' | 'secrets' | 'unique ID' (as
--          `revive`) | 'lost' (another program goes on with the operation, or it has ended) | RQ's word of the status that
--          doesn't allow it

local id, work = ARGV[1], work_of(ARGV[3], ARGV[4])
if work.is_lost() then return 'lost' end
local life = lives()
local f = life.record_of(id)
local function answer() return redis.call('SISMEMBER', KEY.outbox, id) == 1 and 'children' or 'ok' end

if not f.status or is_removed(f.workflow) then return 'gone' end
if work.has_changed(f) then return answer() end
if f.status ~= RQ.canceled then return f.status end
if f.by_call ~= ARGV[2] then return 'other' end

local list, pending, broken = life.weighed(f)
if broken then return 'dependency ' .. broken.ref .. ' ' .. (broken.word or 'gone') end
local now_ms, stamp = clock()
local obstacle = life.obstacle(id, f, now_ms)
if obstacle then return obstacle end

f.is_restored = true
life.begin(id, f, list, pending, now_ms, stamp, work.fields(f))
if redis.call('EXISTS', KEY.revivable .. id) == 1 then redis.call('SADD', KEY.outbox, id) end
return answer()
