-- Ends the attempt but not the task: it asks a person, and runs again with the answer. The attempt isn't counted.
--
-- ARGV[1..4]  id, attempt id, queue, worker name
-- ARGV[5]     the question as JSON: {name, text, timeout (s), schema, default, default_json}
-- Returns     'ok' (also when sent again) | 'stopping' (a stop was asked: finish it as stopped) | 'too_many' (it has asked
--             KEY.questions_most times in this life: finish it as failed) | 'lost'

local move, gate = moves(), gates()
local id, attempt_id, queue, worker, question = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key, mark = KEY.job .. id, attempt_id .. ':ask'

local f = move.record(id, 'attempt_id', 'status', 'seq', 'attempt', 'stop_ms', 'put_back', 'history', 'started_at',
  'secret_ttl', 'asked')
if f.attempt_id ~= attempt_id or f.status ~= RQ.in_progress then
  drop_attempt(id, attempt_id, queue, worker)
  return f.put_back == mark and 'ok' or 'lost'
end
if f.stop_ms then return STATUS.stopping end
local asked = tonumber(f.asked) or 0
if asked >= KEY.questions_most then return 'too_many' end

local now_ms, stamp = clock()
local seq = tonumber(f.seq) + 1
drop_attempt(id, attempt_id, queue, worker) -- first: see there
redis.call('HSET', key, 'status', RQ.waiting_confirmation, 'attempt_id', '', 'attempt', f.attempt - 1, 'put_back', mark,
  'asked', asked + 1, 'question', question, 'seq', seq, 'history',
  move.history_with(f.history, f.attempt, worker, f.started_at, stamp, 'asked', ''))
local told, wait_ms = gate.ask(id, queue, question, now_ms)
if f.secret_ttl then move.keep_secrets(id, f.secret_ttl, wait_ms) end
emit(id, seq, EVENT.waiting_confirmation, STATUS.waiting_confirmation, now_ms, told)
return 'ok'
