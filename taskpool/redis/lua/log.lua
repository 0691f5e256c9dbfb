-- Appends lines to a running task's log. The event has their number and the id of the last one; only listeners get the
-- lines themselves.
--
-- ARGV[1..2]  id, attempt id
-- ARGV[3]     number of the first line within the attempt, from 1; '' = the next one
-- ARGV[4..5]  lines, bytes: the first line of a new attempt drops what is older than the attempt before, if the log has
--             more of either
-- ARGV[6+]    lines, each a JSON object
-- Returns     'ok' (numbered lines that are there already aren't added again) | 'lost' (nothing changed)
--
-- The record's `log` is a list: attempt id, number of its last line, its lines, its bytes, lines and bytes kept of
-- earlier attempts, id of its first line.

local id, key, log = ARGV[1], KEY.job .. ARGV[1], KEY.log .. ARGV[1]
local FIRST = 6
local f = redis.call('HMGET', key, 'attempt_id', 'status', 'seq', 'stop_ms', 'log', 'attempt')
if f[1] ~= ARGV[2] or f[2] ~= RQ.in_progress then return 'lost' end

local owner, had, lines, bytes, old_lines, old_bytes, first = '', 0, 0, 0, 0, 0, ''
if f[5] then owner, had, lines, bytes, old_lines, old_bytes, first = unpack(cjson.decode(f[5])) end
local older_than
if owner ~= ARGV[2] then
  old_lines, old_bytes = old_lines + lines, old_bytes + bytes
  if old_lines > tonumber(ARGV[4]) or old_bytes > tonumber(ARGV[5]) then
    old_lines, old_bytes, older_than = lines, bytes, first
  end
  had, lines, bytes, first = 0, 0, 0, ''
end
local number = tonumber(ARGV[3]) or had + 1
local from = FIRST + math.max(had + 1 - number, 0)
if from > #ARGV then return 'ok' end

local now_ms = clock()
local seq = tonumber(f[3]) + 1
local appended, last = {}, nil
local function append(line)
  last = redis.call('XADD', log, '*', 'l', line)
  if first == '' then first = last end
  lines, bytes = lines + 1, bytes + #line
  appended[#appended + 1] = line
end
local function note(text)
  append(string.format('{"at_ms":%.0f,"text":"%s","attempt":%d,"stream":"taskpool"}', now_ms, text, tonumber(f[6]) or 0))
end

if older_than then note('the log of the attempts before the last one was dropped: it had grown too large') end
local missing = number - had - 1
if missing > 0 then note(string.format('%d line%s missing here', missing, missing == 1 and ' is' or 's are')) end
for at = from, #ARGV do append(ARGV[at]) end
had = number + #ARGV - FIRST
if older_than then redis.call('XTRIM', log, 'MINID', older_than) end
redis.call('EXPIRE', log, KEY.log_idle_ttl_s)
redis.call('HSET', key, 'seq', seq, 'log', cjson.encode({ARGV[2], had, lines, bytes, old_lines, old_bytes, first}))
emit(id, seq, 'log', f[4] and STATUS.stopping or STATUS.in_progress, now_ms,
  ',"count":' .. #appended .. ',"last":"' .. last .. '"', ',"lines":[' .. table.concat(appended, ',') .. ']')
return 'ok'
