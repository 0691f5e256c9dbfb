-- Answers what a task asks, and queues the task again. The first answer counts; the same one again agrees with it.
--
-- ARGV[1]  id
-- ARGV[2]  the number of the task's step with which it asked: which of its questions is meant
-- ARGV[3]  the answer as JSON
-- ARGV[4]  who answers and why as JSON: {name, key, comment}, each of them may be missing
-- ARGV[5]  entry of the audit; '' = none
-- Returns  'ok' (also for the same answer again) | 'gone' | 'other' (there is another answer) | 'changed' (it doesn't ask
--          that, and didn't)

local move, gate, decision = moves(), gates(), decisions()
local id, step, answer = ARGV[1], ARGV[2], ARGV[3]
local f = move.record(id, 'status', 'question', 'answers', unpack(gate.FIELDS))
if not f.status then return 'gone' end

if f.status == RQ.waiting_confirmation and f.question and f.asked_ms and f.seq == step then
  local now_ms, stamp = clock()
  decision.resume(id, f, 'answered', answer, cjson.decode(ARGV[4]), now_ms, stamp)
  audit(KEY.audit_tasks, ARGV[5])
  return 'ok'
end

for line in string.gmatch(f.answers or '', '[^\n]+') do
  if gate.read(line).step == step then
    local ending = decision.ending(answer)
    return string.sub(line, -#ending) == ending and 'ok' or 'other'
  end
end
return 'changed'
