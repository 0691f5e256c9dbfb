-- Confirms or rejects a task that waits for a person. The first decision counts; the same one again agrees with it.
--
-- ARGV[1]  id
-- ARGV[2]  'confirmed' | 'rejected'
-- ARGV[3]  who decides and why as JSON: {name, key, comment}, each of them may be missing
-- ARGV[4]  entry of the audit; '' = none
-- Returns  'ok' | 'children' (it is rejected, and tasks that wait for it are in the outbox); both also for the same decision
--          again
--          'gone' | 'not_allowed' (the task names others) | 'decided' (otherwise, before) | RQ's word of the status that
--          doesn't allow it

local move, gate, decision = moves(), gates(), decisions()
local id, is_confirmed, by = ARGV[1], ARGV[2] == 'confirmed', cjson.decode(ARGV[3])
local f = move.record(id, 'status', 'failure_ttl', 'log', 'confirmation', unpack(gate.FIELDS))
if not f.status then return 'gone' end
if not decision.may_decide(f.confirm, by) then return 'not_allowed' end

if f.status == RQ.waiting_confirmation and f.unconfirmed and f.asked_ms then
  local now_ms, stamp = clock()
  local has_children = decision.decide(id, f, is_confirmed, by, now_ms, stamp)
  audit(KEY.audit_tasks, ARGV[4])
  return has_children and 'children' or 'ok'
end

local made = f.confirmation and gate.read(f.confirmation).decision
if not made then return f.status end
if made ~= ARGV[2] then return 'decided' end
return made == 'rejected' and redis.call('SISMEMBER', KEY.outbox, id) == 1 and 'children' or 'ok'
