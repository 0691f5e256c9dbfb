-- What a worker process does in one round trip: it ends attempts whose tasks are done, and claims the next ready tasks of
-- the first queue that has one. Every other end of an attempt is written by `finish.lua` or `requeue.lua`.
--
-- Foreign jobs call neither our entry point nor one of the RQ functions in ARGV[5]. They stay in the queue, in their
-- order, for the RQ workers that run them. `taskpool:foreign:{queue}` says how far a queue's front consists of such
-- jobs, so that a claim finds the tasks behind them without reading all of them again.
--
-- Several tasks are claimed together only from one queue, and at most one of `ARGV[7]` of those that wait behind the first
-- one: the rest is for other processes. A task that must run alone ends the batch, or is all of it. The ids of attempts that
-- were claimed together end in "-0", "-1" ...
--
-- ARGV[1]  worker name
-- ARGV[2]  attempt id: the fencing token of the attempt that is claimed
-- ARGV[3]  lease in ms
-- ARGV[4]  '1' when the worker was shown as idle until now; 'again' when this call may be sent twice: a task that this
--          attempt has claimed already is then answered once more
-- ARGV[5]  '-' or '!' and the dotted names of RQ functions to run, comma separated. '-': other foreign jobs are left
--          alone; '!': they are claimed, to be refused
-- ARGV[6]  how many tasks to claim at most; '0': none
-- ARGV[7]  of how many tasks that wait one may be claimed with the first one
-- ARGV[8]  how many attempts to end; then for each of them: id, attempt id, queue, seconds the record is kept (negative: for
--          ever), result as JSON
-- ARGV[+]  queues, most urgent first
-- Returns  {words, claimed}. A word for each end: as `finish.lua`, or 'other' (nothing was changed: `finish.lua` ends it).
--          For each claimed task: {id, queue, type, data, attempt, max_attempts, timeout, result_ttl, failure_ttl,
--          enqueued_at, started_ms, parents, timeout_ms, backoff, snoozes, secrets (false: it has none; '': they are no
--          longer kept), trace, on_lost_lease, suspect (set: a process died while it ran this task beside others), edges
--          (what else it depends on, as JSON), occurrence_ms (of its schedule; false: it has none), workflow (false: none),
--          retries_left, retry_intervals (of RQ's Retry; false: none), attempt id}

local worker, attempt_id, lease_ms, was_idle = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local foreign, most, share, ends = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local FIRST_END, END_PARTS = 9, 5
local FIRST_QUEUE = FIRST_END + END_PARTS * ends
local BOUND = 200 -- ids looked at in one call: stale ones and foreign ones are skipped
local FEW = 3 -- with more queues left, the next one that isn't empty is searched for

local now_ms, stamp = clock()
local at_ms = now_ms .. '' -- for events: Lua would turn the number into a text for each of them
local may_be_paused = true -- false: it is known that nothing is suspended or paused

-- Ends the attempts; returns a word for each.
local function end_tasks()
  local words, done = {}, {}
  local leases, finished = {}, {} -- by queue: the names of attempts; ends and ids of tasks
  local attempts, shown, waiters = {}, {}, {KEY.suspended, KEY.switches} -- what a claim asks for is asked along
  for n = 1, ends do
    local at = FIRST_END + END_PARTS * (n - 1)
    local id, attempt_id, queue, ttl_s = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    local f = redis.pcall('HMGET', KEY.job .. id, 'attempt_id', 'status', 'seq', 'type', 'attempt', 'started_at', 'history',
      'secret_ttl', 'log', 'workflow', 'last_heartbeat')
    if f[1] ~= attempt_id or f[2] ~= RQ.in_progress or not f[4] or f[8] or f[10] then
      words[n] = 'other'
    else
      words[n] = 'ok'
      local member, until_s = id .. ':' .. attempt_id, '+inf'
      if ttl_s >= 0 then
        ttl_s = math.max(ttl_s, KEY.least_ttl_s)
        until_s = string.format('%.3f', now_ms / 1000 + ttl_s)
      end
      done[#done + 1] = {n = n, id = id, f = f, ttl_s = ttl_s, result = ARGV[at + 4]}
      attempts[#attempts + 1] = member
      if f[11] then shown[#shown + 1] = member end
      if not leases[queue] then leases[queue], finished[queue] = {}, {} end
      table.insert(leases[queue], member)
      local registry = finished[queue]
      registry[#registry + 1], registry[#registry + 2] = until_s, id
      waiters[#waiters + 1], waiters[#waiters + 2] = KEY.dependents .. id, KEY.followers .. id
      waiters[#waiters + 1], waiters[#waiters + 2] = KEY.needed .. id, KEY.revivable .. id
    end
  end
  if #done == 0 then return words end

  -- As in `drop_attempt`, and first for the same reason.
  for queue, names in pairs(leases) do redis.call('ZREM', KEY.wip .. queue, unpack(names)) end
  redis.call('SREM', KEY.attempts .. worker, unpack(attempts))
  for _, member in ipairs(shown) do
    redis.call('DEL', KEY.execution .. member)
    redis.call('SREM', KEY.worker .. worker .. ':executions', member)
  end
  for _, each in ipairs(done) do
    local f, key = each.f, KEY.job .. each.id
    each.seq = tonumber(f[3]) + 1 .. ''
    redis.call('HSET', key, 'status', RQ.done, 'ended_at', stamp, 'seq', each.seq, 'result', each.result)
    if f[7] then
      redis.call('HSET', key, 'history', rarely().moves().history_with(f[7], f[5], worker, f[6], stamp, STATUS.done, ''))
    end
    if each.ttl_s >= 0 then redis.call('EXPIRE', key, each.ttl_s + KEY.expiry_slack_s) end
    if f[9] then rarely().keep_log(each.id, each.ttl_s) end
  end
  for queue, registry in pairs(finished) do redis.call('ZADD', KEY.finished .. queue, unpack(registry)) end
  may_be_paused = any_exists(unpack(waiters))
  if may_be_paused then
    for _, each in ipairs(done) do
      if rarely().is_waited_for(each.id, true, now_ms) then words[each.n] = 'children' end
    end
  end
  for _, each in ipairs(done) do
    local f = each.f
    local aside = not f[7] and result_aside(f[5], f[6], worker, each.result) or nil
    emit(each.id, each.seq, STATUS.done, STATUS.done, at_ms, '', aside)
  end
  return words
end

local words = ends > 0 and end_tasks() or {}
if most == 0 then return {words, {}} end

local looked_at = 0
local claimed, started = {}, {} -- for each attempt that was started: the answer; its name

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

local function answer(id, queue, f, attempt, token)
  local secrets = f.secret_ttl and (redis.call('GETEX', KEY.secrets .. id, 'EX',
    string.format('%.0f', seconds(f.secret_ttl, 1) + seconds(f.timeout, 0))) or '')
  return {id, queue, f.type, f.data, attempt, f.max_attempts, f.timeout, f.result_ttl, f.failure_ttl, f.enqueued_at,
    string.format('%.0f', now_ms), f.dependency_ids, f.timeout_ms, f.backoff, f.snoozes, secrets or false, f.trace,
    f.on_lost_lease, f.suspect, f.edges, f.occurrence_ms, f.workflow, f.retries_left, f.retry_intervals, token}
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

-- Starts an attempt at a queued task, with this id; nothing if the task is canceled instead, or not confirmed. `named`: the
-- RQ function that it calls. A damaged field counts as none: an error here would lose the id that was just taken out of the
-- queue.
local function start(id, queue, f, token, named)
  local key = KEY.job .. id
  local attempt, seq = (tonumber(f.attempt) or 0) + 1, (tonumber(f.seq) or 0) + 1
  local attempt_text, seq_text = attempt .. '', seq .. ''
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
  redis.call('HSET', key, 'status', RQ.in_progress, 'started_at', stamp, 'worker_name', worker, 'attempt', attempt_text,
    'attempt_id', token, 'seq', seq_text)
  started[#started + 1] = id .. ':' .. token
  emit(id, seq_text, EVENT.in_progress, STATUS.in_progress, at_ms, ',"attempt":' .. attempt_text)
  claimed[#claimed + 1] = answer(id, queue, f, attempt, token)
end

-- How many more tasks of a queue are claimed with this first one.
local function more_behind(place, f)
  if most == 1 or f.suspect or (share > 1 and f.on_lost_lease == 'kill') then return 0 end
  return math.min(most - 1, math.floor(redis.call('LLEN', place) / share))
end

-- Claims these more tasks of a queue.
local function claim_more(queue, place, more)
  for number = 1, more do
    local id = looked_at < BOUND and redis.call('LPOP', place)
    if not id then return end
    looked_at = looked_at + 1
    local f = record_of(id)
    local is_foreign = f.data and not is_stored_by_us(f.data) or not string.find(id, '^[%w_-]+$')
    if is_foreign or f.suspect or (share > 1 and f.on_lost_lease == 'kill') then
      redis.call('LPUSH', place, id)
      return
    end
    if f.status == RQ.queued and not pcall(start, id, queue, f, attempt_id .. '-' .. number) then
      redis.call('LPUSH', place, id)
      return
    end
  end
end

-- Enters the attempts that were started into the registry of their queue, and of their worker.
local function show(queue)
  if #started == 0 then return end
  local leases, until_s = {}, string.format('%.3f', (now_ms + lease_ms) / 1000 + KEY.wip_grace_s)
  for at, member in ipairs(started) do leases[2 * at - 1], leases[2 * at] = until_s, member end
  redis.call('ZADD', KEY.wip .. queue, unpack(leases))
  redis.call('SADD', KEY.attempts .. worker, unpack(started))
  -- A pool of the release before that settles an attempt leaves it there.
  redis.call('EXPIRE', KEY.attempts .. worker, TEXT.attempts_kept_s)
  if was_idle and redis.call('EXISTS', KEY.worker .. worker) == 1 then
    redis.call('HSET', KEY.worker .. worker, 'state', 'busy')
  end
end

if ARGV[4] == 'again' then
  for _, member in ipairs(redis.call('SMEMBERS', KEY.attempts .. worker)) do
    local id, of = string.match(member, '^([%w_-]+):(.+)$')
    if of == attempt_id then
      local held = redis.call('HMGET', KEY.job .. id, 'attempt_id', 'status', 'origin', 'attempt')
      if held[1] == attempt_id and held[2] == RQ.in_progress then
        return {words, {answer(id, held[3], record_of(id), tonumber(held[4]), of)}}
      end
    end
  end
end

local paused -- by queue: nothing is claimed from it
if may_be_paused and any_exists(KEY.suspended, KEY.switches) then
  if redis.call('EXISTS', KEY.suspended) == 1 then return {words, {}} end
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
      if f.status == RQ.queued and string.find(id, '^[%w_-]+$') then
        local more = passed == 0 and more_behind(place, f) or 0
        local is_started, why = pcall(start, id, queue, f, more > 0 and attempt_id .. '-0' or attempt_id, named)
        if claimed[1] then claim_more(queue, place, more) end
        show(queue)
        if not is_started then error(why, 0) end
      end
    end

    if claimed[1] or looked_at >= BOUND then break end
    if passed > 0 then id = redis.call('LINDEX', place, passed) else id = redis.call('LPOP', place) end
  end
  if passed > 0 then foreign_front.keep_foreign(queue, place, passed) end
  if claimed[1] then return {words, claimed} end
  if id then -- the bound is reached: come back at once
    rarely().ring(queue, 1)
    return {words, {}}
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
return {words, {}}
