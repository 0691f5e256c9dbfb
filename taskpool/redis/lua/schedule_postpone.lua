-- Has pools look at a schedule later, which still waits for the same occurrence then.
--
-- ARGV[1]  the occurrence as JSON, see schedules.lua. Without an incarnation: of a schedule that the pool can't read
-- ARGV[2]  ms until then
-- ARGV[3]  '1': the occurrence was tried in vain, and is tried again. When it was tried first is kept
-- Returns  'ok'; 'stale': it doesn't wait for that occurrence (any more); 'gone': the schedule was removed

local now_ms = clock()
local occurrence = cjson.decode(ARGV[1])
local key = KEY.schedule .. occurrence.id
if redis.call('EXISTS', key) == 0 then
  redis.call('ZREM', KEY.schedules_due, occurrence.id)
  return 'gone'
end
if occurrence.incarnation ~= '' and not schedules().expecting(occurrence) then return 'stale' end
redis.call('ZADD', KEY.schedules_due, string.format('%.3f', (now_ms + ARGV[2]) / 1000), occurrence.id)
if ARGV[3] == '1' then redis.call('HSETNX', key, 'retry_ms', now_ms) end
return 'ok'
