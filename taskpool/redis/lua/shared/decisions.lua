-- What people decide about tasks, and what counts if no answer comes in time.

local function decisions()
  local move, gate = moves(), gates()

  -- Confirms or rejects a task that is asked. `f`: gate.FIELDS of its record, and failure_ttl and log. `by`: who decides
  -- and why, {name, key, comment}, each of them may be missing. Returns true when it is rejected and other tasks wait
  -- for it.
  local function decide(id, f, is_confirmed, by, now_ms, stamp)
    local made = {by = by.name, key = by.key, comment = by.comment, by_default = by.by_default, at = stamp,
      decision = is_confirmed and 'confirmed' or 'rejected'}
    gate.take(id, f.origin)
    redis.call('HSET', KEY.job .. id, 'confirmation', cjson.encode(made))
    local told = ',"decision":' .. cjson.encode(made)
    if is_confirmed then
      redis.call('HDEL', KEY.job .. id, 'unconfirmed')
      f.unconfirmed = nil
      gate.pass(id, f, told, now_ms, stamp)
      return false
    end
    local error = by.by_default and 'rejected: it was not confirmed in time'
      or 'rejected' .. (by.name and by.name ~= '' and ' by ' .. by.name or '') .. (by.comment and ': ' .. by.comment or '')
    return move.cancel_task(id, f, 'rejected', error, told, now_ms, stamp)
  end

  -- Whether they may decide: anyone, if the task names no keys; else a key with one of these ids or names. Without API
  -- keys it isn't known who decides, so anyone may.
  local function may_decide(confirm, by)
    local who = gate.read(confirm).who
    if type(who) ~= 'table' or #who == 0 or not by.key then return true end
    for _, each in ipairs(who) do
      if each == by.key or each == by.name then return true end
    end
    return false
  end

  -- How the line of an answer (JSON) ends.
  local function ending(answer)
    return ',"answer":' .. answer .. '}'
  end

  -- Queues a task again with the answer (JSON) to its question. `how`: answered | default | timeout. `f`: gate.FIELDS of
  -- its record, question and answers.
  local function resume(id, f, how, answer, by, now_ms, stamp)
    local asked = gate.read(f.question)
    local line = cjson.encode({question = asked.name, text = asked.text, at = stamp, step = f.seq, how = how,
      by = by.name, key = by.key, comment = by.comment})
    gate.take(id, f.origin)
    redis.call('HDEL', KEY.job .. id, 'question')
    redis.call('HSET', KEY.job .. id, 'answers',
      move.with_line(f.answers, string.sub(line, 1, -2) .. ending(answer), KEY.questions_most))
    f.run_ms = nil
    gate.pass(id, f, ',"question":' .. cjson.encode(asked.name or '') .. ',"how":"' .. how .. '"', now_ms, stamp)
  end

  return {decide = decide, may_decide = may_decide, ending = ending, resume = resume}
end
