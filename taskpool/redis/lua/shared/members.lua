-- Counts of the members of workflows, by how they ended.

-- Whether the workflow of a task (nil: none) was removed: its members go with it.
local function is_removed(workflow)
  if not workflow then return false end
  local f = redis.call('HMGET', KEY.workflow .. workflow, 'status', 'removed')
  return not f[1] or f[2] ~= false
end

-- The functions below, by name: counts of workflows. They are made only for tasks that belong to one.
local function members()
  -- Puts a group of tasks that has ended into the outbox if others wait for it; whether they do.
  local function put_out(ref)
    return redis.call('EXISTS', KEY.followers .. ref) == 1 and redis.call('SADD', KEY.outbox, ref) > 0
  end

  -- The same for one that hasn't ended any more, or in another way, if tasks were canceled because of it.
  local function call_back(ref)
    if redis.call('EXISTS', KEY.revivable .. ref) == 0 then return end
    redis.call('SADD', KEY.outbox, ref)
    redis.call('PUBLISH', KEY.soon, '0')
  end

  -- Writes how a workflow has ended if all its members have; or that it hasn't (any more). `w`: fields of it by name.
  -- Returns true when other tasks wait for the end.
  local function settle(workflow, w, now_ms, stamp)
    local key, status = KEY.workflow .. workflow, STATUS.in_progress
    if w.ended >= w.total and redis.call('EXISTS', key .. KEY.workflow_reviving) == 0 then
      local unhandled = tonumber(redis.call('HGET', key, 'unhandled') or 0)
      status = w.stop and STATUS.stopped or unhandled > 0 and STATUS.failed or STATUS.done
    elseif w.stop then
      status = STATUS.stopping
    end
    if status == w.status then return end
    local seq = redis.call('HINCRBY', key, 'seq', 1)
    local more = ',"ended":' .. w.ended .. ',"total":' .. w.total
    if status == STATUS.in_progress or status == STATUS.stopping then
      redis.call('HSET', key, 'status', status)
      redis.call('HDEL', key, 'ended_at')
      redis.call('ZREM', KEY.workflows_ended, workflow)
      redis.call('ZADD', KEY.workflows_open, 0, workflow)
      emit(workflow, seq, 'workflow_retried', status, now_ms, more)
      call_back(workflow .. ':')
      return
    end
    redis.call('HSET', key, 'status', status, 'ended_at', stamp, 'percent', 100)
    redis.call('ZREM', KEY.workflows_open, workflow)
    redis.call('ZREM', KEY.workflows_stopping, workflow)
    local ttl_s = tonumber(redis.call('HGET', key, status == STATUS.done and 'result_ttl' or 'failure_ttl'))
    local until_s = ttl_s >= 0 and string.format('%.3f', now_ms / 1000 + math.max(ttl_s, KEY.least_ttl_s)) or '+inf'
    redis.call('ZADD', KEY.workflows_ended, until_s, workflow)
    emit(workflow, seq, 'workflow_' .. status, status, now_ms, more)
    if status == STATUS.done then call_back(workflow .. ':') end
    return put_out(workflow .. ':')
  end

  -- How a member of a workflow may be counted, by one letter: the word of its count. KEY.failure_letters are failures. A
  -- task that was canceled because of another one, or with its workflow, is none.
  local COUNT = {d = STATUS.done, n = STATUS.canceled, w = STATUS.canceled, c = STATUS.canceled, f = STATUS.failed,
    s = STATUS.stopped, r = 'removed'}
  local LETTER = {[RQ.done] = 'd', [RQ.failed] = 'f', [RQ.stopped] = 's', [RQ.canceled] = 'c'}
  local NO_FAILURE = {dependency_failed = 'n', not_needed = 'n', workflow_stopped = 'w'}

  -- Whether a member that was counted with this letter may have to be counted anew, for RQ's word of its status.
  local function differs(letter, status)
    local to = LETTER[status]
    return to ~= letter and not (to == 'c' and (letter == 'n' or letter == 'w')) and (to or COUNT[letter]) ~= nil
  end

  -- The node of a member whose record is gone, and whether it is a map's; nil: no node has this number.
  local function node_of(key, number)
    local name, first = unpack(redis.call('ZREVRANGEBYSCORE', key .. KEY.workflow_order, number, '-inf', 'WITHSCORES',
      'LIMIT', 0, 1))
    if not name then return nil end
    local size = tonumber(redis.call('HGET', key, 'map:' .. name .. ':total'))
    if number < first + (size or 1) then return name, size end
  end

  -- The letter by which a member was counted last; '-': it had not ended.
  local function letter_of(id, workflow)
    local number = tonumber(string.sub(id, -4), 32) or 1
    local letter = redis.call('GETRANGE', KEY.workflow .. workflow .. KEY.workflow_counted, number - 1, number - 1)
    return COUNT[letter] and letter or '-', number
  end

  -- Counts a member of a workflow with the status that its record shows: the counts move from the one with which it was
  -- counted last. The end of the last member ends the workflow. Returns true when it ended a group that others wait for.
  local function count(id, workflow, now_ms, stamp)
    local key = KEY.workflow .. workflow
    local from, number = letter_of(id, workflow)
    local status, node, map, reason, cause = unpack(redis.call('HMGET', KEY.job .. id, 'status', 'node', 'map', 'reason',
      'canceled_by'))
    if not status and COUNT[from] then return end -- it had ended before its record went
    local to = not status and 'r' or LETTER[status] or '-'
    if to == 'c' and NO_FAILURE[reason] then to = NO_FAILURE[reason] end
    -- What failed outside of the workflow counts nowhere else.
    local is_outside = cause and string.sub(cause, 1, 16) ~= string.sub(workflow, 1, 16)
    if to == 'n' and is_outside and reason == 'dependency_failed' then to = 'c' end
    if from == to then return end
    if not status then node, map = node_of(key, number) end
    if not node then return end

    -- What changes is read with one command and written with another: most tasks of a workflow come here once.
    local names, deltas, of_map = {'status', 'total', 'percent', 'stop'}, {}, 'map:' .. node .. ':'
    local function change(name, by)
      if not deltas[name] then names[#names + 1] = name end
      deltas[name] = (deltas[name] or 0) + by
    end
    local function tally(letter, by)
      if not COUNT[letter] then return end
      change('ended', by)
      change('n:' .. COUNT[letter], by)
      if map then
        change(of_map .. 'ended', by)
        change(of_map .. 'n:' .. COUNT[letter], by)
      end
      if string.find(KEY.failure_letters, letter, 1, true) then
        change('bad:' .. node, by)
        if redis.call('HEXISTS', key, 'handled:' .. node) == 0 then change('unhandled', by) end
      end
    end
    tally(from, -1)
    tally(to, 1)
    if map then names[#names + 1] = of_map .. 'total' end
    local f, changed = {}, {}
    for at, value in ipairs(redis.call('HMGET', key, unpack(names))) do f[names[at]] = value end
    if not f.status then return end
    for name, by in pairs(deltas) do
      f[name] = (tonumber(f[name]) or 0) + by
      changed[#changed + 1] = name
      changed[#changed + 1] = f[name]
    end
    local w = {status = f.status, total = tonumber(f.total), ended = f.ended, stop = f.stop}
    local percent = math.floor(100 * w.ended / w.total)
    local is_progress = w.ended < w.total and deltas.ended > 0 and percent > tonumber(f.percent)
    if is_progress then
      changed[#changed + 1] = 'percent'
      changed[#changed + 1] = percent
    end
    redis.call('HSET', key, unpack(changed))
    redis.call('SETRANGE', key .. KEY.workflow_counted, number - 1, to)
    local is_awaited = false
    if map and COUNT[from] then call_back(workflow .. ':' .. node) end
    if map and deltas.ended > 0 and f[of_map .. 'ended'] == tonumber(f[of_map .. 'total']) then
      is_awaited = put_out(workflow .. ':' .. node)
    end
    if is_progress then
      emit(workflow, redis.call('HINCRBY', key, 'seq', 1), 'workflow_progress', w.status, now_ms,
        ',"ended":' .. w.ended .. ',"total":' .. w.total)
    elseif w.ended >= w.total or deltas.ended < 0 then
      is_awaited = settle(workflow, w, now_ms, stamp) or is_awaited
    end
    return is_awaited
  end

  return {count = count, differs = differs, letter_of = letter_of, settle = settle}
end
