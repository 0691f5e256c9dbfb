-- Takes the next ready task of the first queue that has one, for one attempt.
--
-- Foreign jobs call neither our entry point nor one of the RQ functions in ARGV[5]. They stay in the queue, in their
-- order, for the RQ workers that run them. `taskpool:foreign:{queue}` says how far a queue's front consists of such
-- jobs, so that a claim finds the tasks behind them without reading all of them again.
--
-- ARGV[1]  worker name
-- ARGV[2]  attempt id: the fencing token of this attempt
-- ARGV[3]  lease in ms
-- ARGV[4]  '1' when the worker was shown as idle until now; 'again' when this call may be sent twice: a task that this
--          attempt has claimed already is then answered once more
-- ARGV[5]  '-' or '!' and the dotted names of RQ functions to run, comma separated. '-': other foreign jobs are left
--          alone; '!': they are claimed, to be refused
-- ARGV[6+] queues, most urgent first
-- Returns  {id, queue, type, data, attempt, max_attempts, timeout, result_ttl, failure_ttl, enqueued_at, started_ms,
--           parents, timeout_ms, backoff, snoozes, secrets (false: it has none; '': they are no longer kept), trace,
--           on_lost_lease, suspect (set: a process died while it ran this task beside others), edges (what else it
--           depends on, as JSON), occurrence_ms (of its schedule; false: it has none), workflow (false: none), retries_left,
--           retry_intervals (of RQ's Retry; false: none)},
--           or false: nothing is ready, its queues are paused, or `rq suspend` holds

local worker, attempt_id, lease_ms, was_idle = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local foreign, FIRST_QUEUE = ARGV[5], 6
local BOUND = 200 -- ids looked at in one call: stale ones and foreign ones are skipped
local FEW = 3 -- with more queues left, the next one that isn't empty is searched for

local now_ms, stamp = clock()
local looked_at = 0

-- The whole record, by field; false for one that it doesn't have but a claim answers with. Most records have few of the
-- fields that a claim looks at, and asking for each of them costs more.
local function record_of(id)
  local flat = redis.pcall('HGETALL', KEY.job .. id)
  if flat.err then return rarely().fields_of_record(id, 'status') end
  local f = {type = false, data = false, max_attempts = false, timeout = false, result_ttl = false, failure_ttl = false,
    enqueued_at = false, dependency_ids = false, timeout_ms = false, backoff = false, snoozes = false, trace = false,
    on_lost_lease = false, suspect = false, edges = false, occurrence_ms = false, workflow = false, retries_left = false,
    retry_intervals = false}
  for at = 1, #flat, 2 do f[flat[at]] = flat[at + 1] end
  return f
end

-- The seconds that a field says; one that is damaged counts as `least`, one that is too large as 30 years.
local function seconds(field, least)
  local said = tonumber(field)
  return said and said > least and math.min(said, 1e9) or least -- "nan" is a number, but none that is greater
end

local function answer(id, queue, f, attempt)
  local secrets = f.secret_ttl and (redis.call('GETEX', KEY.secrets .. id, 'EX',
    string.format('%.0f', seconds(f.secret_ttl, 1) + seconds(f.timeout, 0))) or '')
  return {id, queue, f.type, f.data, attempt, f.max_attempts, f.timeout, f.result_ttl, f.failure_ttl, f.enqueued_at,
    string.format('%.0f', now_ms), f.dependency_ids, f.timeout_ms, f.backoff, f.snoozes, secrets or false, f.trace,
    f.on_lost_lease, f.suspect, f.edges, f.occurrence_ms, f.workflow, f.retries_left, f.retry_intervals}
end

-- The functions for queues with foreign jobs. They are made only when a claim meets one.
local function beside_rq()
  local jobs = rarely().foreign_jobs()

  -- Whether a job is another program's, and to be left alone; as how many ids it counts; and the RQ function that it
  -- calls, if that is one to run. A record with a type is a task, even if its data can't be read any more. An id that
  -- no task can have is that of a foreign job, whatever it calls: an RQ worker can run it.
  local function is_foreign(id, f)
    local name, cost = jobs.called_function(f.data)
    if not string.find(id, '^[%w_-]+$') then return true, cost end
    if name == KEY.entry_point then return false, cost end
    if name and string.find(',' .. string.sub(foreign, 2) .. ',', ',' .. name .. ',', 1, true) then
      return jobs.needs_rq(id), cost, name
    end
    local is_task = not name and f.type and f.type ~= KEY.unknown_type
    return not is_task and string.sub(foreign, 1, 1) ~= '!', cost
  end

  -- What `keep_foreign` kept: how many, the first id, the last one; nothing if there is none. The length of the first
  -- id tells where it ends: an id of another program may hold any byte.
  local function read_known(queue)
    local kept = redis.call('HGET', KEY.foreign .. queue, foreign) or ''
    local n, length, ids = string.match(kept, '^(%d+) (%d+) (.*)$')
    if n then return tonumber(n), string.sub(ids, 1, length), string.sub(ids, length + 1) end
  end

  -- How many foreign jobs the front of a queue consists of, as far as it is known: 1 at least, the one that is its
  -- head. RQ's workers take them from the front. When others were put in front of them since, those have not been
  -- looked at: then the second value is the first id that has.
  local function known_foreign(queue, place, head)
    local n, first, last = read_known(queue)
    if not n then return 1 end
    local new = head ~= first and redis.call('LPOS', place, first, 'MAXLEN', 1000)
    if new then return 1, first end
    if redis.call('LINDEX', place, n - 1) == last then return n end
    local at = redis.call('LPOS', place, last, 'MAXLEN', n)
    return at and at + 1 or 1
  end

  -- The same for a search that has come to the first of those that are known, at this index.
  local function known_from(queue, place, at)
    local n, _, last = read_known(queue)
    local found = last and redis.call('LPOS', place, last, 'MAXLEN', at + n)
    return found and found + 1 or at + 1
  end

  local function keep_foreign(queue, place, n)
    local key, first, last = KEY.foreign .. queue, redis.call('LINDEX', place, 0), redis.call('LINDEX', place, n - 1)
    redis.call('HSET', key, foreign, n .. ' ' .. #first .. ' ' .. first .. last)
    if redis.call('TTL', key) < 0 then redis.call('EXPIRE', key, KEY.foreign_kept_s) end
    redis.call('ZADD', KEY.foreign_queues, string.format('%.3f', now_ms / 1000), queue)
  end

  return {is_foreign = is_foreign, known_foreign = known_foreign, known_from = known_from, keep_foreign = keep_foreign}
end

-- Why a queued task must not start: reason, error, more of its event; nil: it may.
local function refusal_of(id, f)
  -- A task that was started in time, whatever became of that attempt, no longer expires. Nor does one whose time is
  -- only over because Redis's clock was stepped (see step.lua).
  local expires_ms = not f.started_at and tonumber(f.expires_ms)
  if expires_ms and expires_ms <= now_ms and rarely().expiry_of(expires_ms, f.expires_clock) <= now_ms then
    return 'expired', KEY.expired, ''
  end
  local rival = f.started_at and f.unique and rarely().unique_keys().rival_of(id, now_ms)
  if rival then
    local error = 'canceled: the task %s took its unique key before it was queued again'
    return 'unique_key_held', string.format(error, rival), ',"by":"' .. rival .. '"'
  end
  -- A member of a workflow may have ended, and been queued again by RQ's tools: then it is counted anew.
  if f.workflow then
    local member = rarely().members()
    if member.letter_of(id, f.workflow) ~= '-' then member.count(id, f.workflow, now_ms, stamp) end
    if redis.call('HGET', KEY.workflow .. f.workflow, 'stop') then
      return 'workflow_stopped', 'canceled: its workflow was stopped', ''
    end
  end
end

-- Starts an attempt at a queued task; nothing if the task is canceled instead, or not confirmed. `named`: the RQ function
-- that it calls. A damaged field counts as none: an error here would lose the id that was just taken out of the queue.
local function start(id, queue, f, named)
  local key, member = KEY.job .. id, id .. ':' .. attempt_id
  local attempt, seq = (tonumber(f.attempt) or 0) + 1, (tonumber(f.seq) or 0) + 1
  if f.expires_ms then redis.call('ZREM', KEY.expiring, id) end
  local reason, error, more = refusal_of(id, f)
  if reason then
    local fields = {origin = queue, seq = seq - 1, failure_ttl = f.failure_ttl, secret_ttl = f.secret_ttl}
    rarely().moves().cancel_task(id, fields, reason, error, more, now_ms, stamp)
    return nil
  end
  if f.unconfirmed then
    rarely().gates().put_back(id, queue, now_ms, stamp)
    return nil
  end
  -- RQ's own enqueue and a dashboard's requeue leave an expiry or the last attempt's end on the record.
  if attempt > 1 or not f.type or f.started_at then
    redis.call('PERSIST', key)
    -- A reason says that the task had ended, so this is a new life: its crashes don't count on.
    if f.started_at and f.reason then redis.call('HDEL', key, 'crashes', 'suspect') end
    redis.call('HDEL', key, 'ended_at', 'error', 'failure', 'reason', 'fingerprint', 'progress', 'stop_ms',
      'stop_grace_s', 'stop_force', 'rq_failure', 'asked_ms', 'answer_by_ms', 'asked_clock', 'question')
  end
  if named and f.type ~= named then
    f.type = named
    rarely().moves().set_type(id, named, queue, now_ms)
  end
  redis.call('HSET', key, 'status', RQ.in_progress, 'started_at', stamp, 'worker_name', worker, 'attempt', attempt,
    'attempt_id', attempt_id, 'seq', seq)
  redis.call('ZADD', KEY.wip .. queue, string.format('%.3f', (now_ms + lease_ms) / 1000 + KEY.wip_grace_s), member)
  redis.call('HSET', KEY.execution .. member, 'job_id', id, 'created_at', now_ms / 1000, 'last_heartbeat',
    now_ms / 1000, 'worker_name', worker)
  redis.call('EXPIRE', KEY.execution .. member, KEY.wip_grace_s)
  redis.call('SADD', KEY.worker .. worker .. ':executions', member)
  if was_idle and redis.call('EXISTS', KEY.worker .. worker) == 1 then
    redis.call('HSET', KEY.worker .. worker, 'state', 'busy')
  end
  emit(id, seq, EVENT.in_progress, STATUS.in_progress, now_ms, ',"attempt":' .. attempt)
  return answer(id, queue, f, attempt)
end

if ARGV[4] == 'again' then
  for _, member in ipairs(redis.call('SMEMBERS', KEY.worker .. worker .. ':executions')) do
    local id, of = string.match(member, '^([%w_-]+):(.+)$')
    if of == attempt_id then
      local held = redis.call('HMGET', KEY.job .. id, 'attempt_id', 'status', 'origin', 'attempt')
      if held[1] == attempt_id and held[2] == RQ.in_progress then
        return answer(id, held[3], record_of(id), tonumber(held[4]))
      end
    end
  end
end

local paused -- by queue: nothing is claimed from it
if any_exists(KEY.suspended, KEY.switches) then
  if redis.call('EXISTS', KEY.suspended) == 1 then return false end
  local fields = {'all', 'pool:' .. (string.match(worker, '^(.+)%.') or '')}
  for argument = FIRST_QUEUE, #ARGV do fields[#fields + 1] = 'queue:' .. ARGV[argument] end
  local found = redis.pcall('HMGET', KEY.switches, unpack(fields))
  paused = {}
  for argument = FIRST_QUEUE, #ARGV do
    paused[ARGV[argument]] = found[1] or found[2] or found[argument - FIRST_QUEUE + 3]
  end
end

local foreign_front -- the functions of `beside_rq`, once a foreign job was met
local argument = FIRST_QUEUE
while argument and argument <= #ARGV do
  local queue = ARGV[argument]
  local place = KEY.queue .. queue
  local passed, known = 0, nil -- foreign jobs at the front: from the first one on, nothing is popped any more
  local claimed = nil
  local id = not (paused and paused[queue]) and redis.call('LPOP', place)
  while id do
    local f = record_of(id)
    local is_alien, cost, named = false, nil, nil
    if f.data and not is_stored_by_us(f.data) then
      foreign_front = foreign_front or beside_rq()
      is_alien, cost, named = foreign_front.is_foreign(id, f)
    end
    looked_at = looked_at + (cost or 1)

    if is_alien then
      if passed == 0 then
        redis.call('LPUSH', place, id)
        passed, known = foreign_front.known_foreign(queue, place, id)
      elseif id == known then
        passed, known = foreign_front.known_from(queue, place, passed), nil
      else
        passed = passed + 1
      end
    else
      if passed > 0 then redis.call('LREM', place, passed * 2 > redis.call('LLEN', place) and -1 or 1, id) end
      -- Only a queued record is started. Anything else is a leftover (removed by a dashboard, queued twice): skip it.
      if f.status == RQ.queued and string.find(id, '^[%w_-]+$') then claimed = start(id, queue, f, named) end
    end

    if claimed or looked_at >= BOUND then break end
    if passed > 0 then id = redis.call('LINDEX', place, passed) else id = redis.call('LPOP', place) end
  end
  if passed > 0 then foreign_front.keep_foreign(queue, place, passed) end
  if claimed then return claimed end
  if id then -- the bound is reached: come back at once
    rarely().ring(queue, 1)
    return false
  end
  argument = argument + 1
  if #ARGV - argument >= FEW then argument = rarely().first_waiting(argument, #ARGV) end
end

-- Every queue is empty or paused, or holds only foreign jobs: what still rings is stale.
local bells = {}
for at = FIRST_QUEUE, #ARGV do bells[#bells + 1] = KEY.doorbell .. ARGV[at] end
if #bells > 0 then redis.call('DEL', unpack(bells)) end
if not was_idle and redis.call('EXISTS', KEY.worker .. worker) == 1 then
  redis.call('HSET', KEY.worker .. worker, 'state', 'idle')
end
return false
