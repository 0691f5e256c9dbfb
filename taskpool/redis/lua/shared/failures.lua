-- Groups of failures: what the scripts that end a failed attempt share.

-- The fingerprint of a failure; `fingerprint_of` in fingerprints.py computes the same.
local function fingerprint_of(kind, where)
  local text, hash = kind .. '\n' .. where, 0
  for at = 1, #text do hash = (hash * 33 + string.byte(text, at)) % 140737488355328 end -- 2 ^ 47: numbers stay exact
  return string.format('%012x', hash)
end

-- Enters a failed attempt into the group of its fingerprint, and writes the fingerprint on its record. `fault` is JSON of
-- `fault_of` in scripts.py. `is_end`: the task has failed with it. A group's hash holds its counts, and for each of the
-- last 24 hours 'h:SLOT' = 'hour:count'. `t:`, `b:`, `q:` and `w:` count types, builds, queues and workers, with the
-- number of names in `t`, `b`, `q` and `w`; what is above the limit counts under no name.
local function note_failure(id, type, queue, worker, fault, error, is_end, now_ms)
  if not fault or fault == '' then return end
  local given = cjson.decode(fault)
  local fingerprint = given.fingerprint or fingerprint_of(given.kind, type)
  redis.call('HSET', KEY.job .. id, 'fingerprint', fingerprint)
  local key, hour = KEY.failure .. fingerprint, (now_ms - now_ms % 3600000) / 3600000
  local kinds, names = {'t', 'b', 'q', 'w'}, {type, given.build or '', queue, worker}
  local slot, asked = 'h:' .. hour % 24, {'count', 'tasks', 'first_ms'}
  asked[4] = slot
  for at = 1, 4 do
    asked[4 + at] = kinds[at]
    asked[8 + at] = kinds[at] .. ':' .. names[at]
    asked[12 + at] = kinds[at] .. ':'
  end
  local f = redis.pcall('HMGET', key, unpack(asked))
  if f.err then return end -- another program wrote something there
  local function number(at) return tonumber(f[at]) or 0 end

  local counted_hour, counted = string.match(f[4] or '', '^(%d+):(%d+)$')
  local this_hour = (tonumber(counted_hour) == hour and counted or 0) + 1
  local fields = {'kind', given.kind, 'place', given.place or '', 'message', error, 'sample', id, 'retryable',
    given.is_final and '' or '1', 'count', number(1) + 1, 'tasks', number(2) + (is_end and 1 or 0),
    'last_ms', string.format('%.0f', now_ms), slot, string.format('%.0f:%.0f', hour, this_hour)}
  local function put(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if not f[3] then put('first_ms', string.format('%.0f', now_ms)) end
  for at = 1, 4 do
    if f[8 + at] then
      put(asked[8 + at], number(8 + at) + 1)
    elseif number(4 + at) < KEY.failure_names_most then
      put(asked[8 + at], 1)
      put(kinds[at], number(4 + at) + 1)
    else
      put(asked[12 + at], number(12 + at) + 1)
    end
  end
  redis.call('HSET', key, unpack(fields))
  if redis.call('ZADD', KEY.failures, string.format('%.0f', now_ms), fingerprint) == 1
    and redis.call('ZCARD', KEY.failures) > KEY.failures_most then
    redis.call('DEL', KEY.failure .. redis.call('ZPOPMIN', KEY.failures)[1])
  end
end
