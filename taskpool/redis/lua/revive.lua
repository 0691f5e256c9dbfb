-- Gives a failed, stopped or canceled task a new life by hand: queued again, for a new attempt. If a task that it depends
-- on has been retried and not ended yet, it waits for that one. The tasks that were canceled because of it are revived by
-- `release`, which finds it in the outbox. One that a person has not confirmed waits for that again.
--
-- ARGV[1]  id
-- ARGV[2]  mark of this call, by which it is known when it is sent again
-- ARGV[3]  entry of the audit; '' = none
-- ARGV[4]  the program that goes on with the operation of this mark; nil = there is none
-- ARGV[5]  of a redrive: the key of its hash
-- Returns  'ok' | 'children' (tasks that were canceled because of it are in the outbox); both also when sent again, whatever
--          became of the task since
--          'gone' | 'dependency REF WORD' (this has ended, and not as the task needs it: RQ's word of its status, or
--          'gone') | 'secrets' (they are no longer kept) | 'unique ID' (that task holds its unique key) | 'lost' (another
--          program goes on with the operation, or it has ended) | RQ's word of the status that doesn't allow it

local id, work = ARGV[1], work_of(ARGV[2], ARGV[4], ARGV[5])
if work.is_lost() then return 'lost' end
local life = lives()
local f = life.record_of(id)

local function answer() return redis.call('SISMEMBER', KEY.outbox, id) == 1 and 'children' or 'ok' end

if not f.status or is_removed(f.workflow) then return 'gone' end
if work.has_changed(f) then return answer() end
if not RQ_SET.retryable[f.status] then return f.status end

local list, pending, broken = life.weighed(f)
if broken then return 'dependency ' .. broken.ref .. ' ' .. (broken.word or 'gone') end
local now_ms, stamp = clock()
local obstacle = life.obstacle(id, f, now_ms)
if obstacle then return obstacle end

redis.call('HDEL', KEY.job .. id, 'run_ms') -- it runs at once
f.run_ms = nil
life.begin(id, f, list, pending, now_ms, stamp, work.fields(f))
audit(KEY.audit_tasks, ARGV[3])
if redis.call('EXISTS', KEY.revivable .. id) == 1 then redis.call('SADD', KEY.outbox, id) end
return answer()
