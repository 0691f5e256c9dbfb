-- The gates between a task's parents and a worker, in order: a person confirms it, its time comes. (The gates before
-- them are the script that stores it and the release of its parents; behind them is its queue.)
--
-- A record with `unconfirmed` may not start before a person has confirmed it. While one is asked, the record has
-- `asked_ms` and `answer_by_ms`, when the default answer counts, and the task is in KEY.confirmations by that time.

-- The functions below, by name. They are made only when a script asks for them: most tasks pass no gate but their queue.
local function gates()
  local move = moves()

  -- The fields of a record that `pass` and `ask` read.
  local FIELDS = {'origin', 'seq', 'run_ms', 'run_clock', 'secret_ttl', 'unconfirmed', 'confirm', 'asked_ms'}

  -- What is asked: a JSON object with at least `text` and `timeout`, in seconds. Another program may have written
  -- anything to the record.
  local function read(json)
    local is_json, asked = pcall(cjson.decode, json or '')
    asked = is_json and type(asked) == 'table' and asked or {}
    if type(asked.text) ~= 'string' then asked.text = '' end
    if type(asked.timeout) ~= 'number' then asked.timeout = KEY.open_s end
    return asked
  end

  -- Enters a task among those that wait for a person, with what is asked of it (see `read`). Returns the members of its
  -- event, and in how many ms the default answer counts. The caller writes the status and the event.
  local function ask(id, queue, json, now_ms)
    local asked = read(json)
    local wait_ms = asked.timeout * 1000
    local until_ms = string.format('%.0f', now_ms + wait_ms)
    redis.call('HSET', KEY.job .. id, 'asked_ms', string.format('%.0f', now_ms), 'answer_by_ms', until_ms,
      'asked_clock', clock_base(now_ms))
    redis.call('ZADD', KEY.deferred .. queue, string.format('%.3f', now_ms / 1000), id)
    redis.call('ZADD', KEY.confirmations, string.format('%.3f', until_ms / 1000), id)
    local name = type(asked.name) == 'string' and ',"question":' .. cjson.encode(asked.name) or ''
    return name .. ',"text":' .. cjson.encode(asked.text) .. ',"answer_by_ms":' .. until_ms, wait_ms
  end

  -- Takes a task out of those that wait for a person.
  local function take(id, queue)
    redis.call('ZREM', KEY.confirmations, id)
    redis.call('ZREM', KEY.deferred .. queue, id)
    redis.call('HDEL', KEY.job .. id, 'asked_ms', 'answer_by_ms', 'asked_clock')
  end

  -- Moves a task whose parents are satisfied to the next gate that holds it. `f` has the fields FIELDS of its record;
  -- `more` are members of its event; `...`: more fields of the record. The caller has taken it out of where it was.
  local function pass(id, f, more, now_ms, stamp, ...)
    if f.unconfirmed and f.asked_ms then return end -- it is asked already
    local queue, run_ms = f.origin, tonumber(f.run_ms)
    local moved = run_ms and moved_ms(f.run_clock)
    if moved then -- Redis's clock was stepped while it waited
      run_ms = run_ms + moved
      redis.call('HSET', KEY.job .. id, 'run_ms', string.format('%.0f', run_ms), 'run_clock', clock_base(now_ms))
    end
    local delay_ms = math.max((run_ms or 0) - now_ms, 0)
    if f.unconfirmed then
      local seq = tonumber(f.seq or 0) + 1
      redis.call('HSET', KEY.job .. id, 'status', RQ.waiting_confirmation, 'seq', seq, ...)
      redis.call('HDEL', KEY.job .. id, 'confirmation')
      local told, wait_ms = ask(id, queue, f.confirm, now_ms)
      if f.secret_ttl then move.keep_secrets(id, f.secret_ttl, delay_ms + wait_ms) end
      emit(id, seq, EVENT.waiting_confirmation, STATUS.waiting_confirmation, now_ms, more .. told)
      return
    end
    if f.secret_ttl then move.keep_secrets(id, f.secret_ttl, delay_ms) end
    if delay_ms > 0 then
      move.schedule_task(id, queue, f.seq, run_ms, EVENT.scheduled, more, now_ms, ...)
    else
      move.queue_task(id, queue, f.seq, false, EVENT.queued, more, now_ms, stamp, ...)
    end
  end

  -- Puts a queued task back that must not start unconfirmed: another program has queued it.
  local function put_back(id, queue, now_ms, stamp)
    redis.call('PERSIST', KEY.job .. id)
    redis.call('HDEL', KEY.job .. id, 'asked_ms', 'ended_at', 'error', 'failure', 'reason', 'fingerprint')
    local f = move.record(id, unpack(FIELDS))
    f.origin = queue
    pass(id, f, '', now_ms, stamp)
  end

  return {FIELDS = FIELDS, read = read, ask = ask, take = take, pass = pass, put_back = put_back}
end
