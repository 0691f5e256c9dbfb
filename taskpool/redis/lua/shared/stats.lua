-- Counts of this minute, from which the metrics' totals and the history are made (see operations/insight/history.py).

-- The minute since 1970 of a time in ms.
local function minute_of(now_ms)
  return (now_ms - now_ms % 60000) / 60000
end

-- A label of a count as it stands in a field: see keys.field_name.
local function label_of(text)
  return (string.gsub(string.gsub(text or KEY.unknown_type, '%%', '%%25'), '|', '%%7C'))
end

-- Counts `n` tasks that were submitted. The first ones of a kind in each minute also enter the name of their type among
-- the types in use, so that the others need no command for it: see `is_submitted_now`.
local function note_submitted(type, queue, n, now_ms)
  local minute = minute_of(now_ms)
  local pair = label_of(type) .. '|' .. label_of(queue)
  if redis.call('HINCRBY', KEY.stats_submitted .. minute, pair, n) > n then return end
  redis.call('SADD', KEY.stats_open, minute)
  redis.call('SADD', KEY.types_used, type or KEY.unknown_type)
end

-- Whether a task of this type was submitted in this minute: then the name of the type must stay among those in use.
local function is_submitted_now(type)
  local start = label_of(type) .. '|'
  for _, pair in ipairs(redis.call('HKEYS', KEY.stats_submitted .. minute_of(clock()))) do
    if string.sub(pair, 1, #start) == start then return true end
  end
  return false
end

-- Counts the end of an attempt or a task that no worker process counts; `build` is that of its worker, if there was one.
local function tally(outcome, type, queue, build, now_ms)
  local minute = minute_of(now_ms)
  redis.call('SADD', KEY.stats_open, minute)
  redis.call('HINCRBY', KEY.stats_counted .. minute, 'tasks|' .. outcome .. '|' .. label_of(type) .. '|' .. label_of(queue)
    .. '|' .. label_of(build or ''), 1)
end
