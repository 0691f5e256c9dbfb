-- Notes an occurrence of a schedule for which no task is submitted, and has the schedule wait for the next one.
--
-- ARGV[1]  the occurrence as JSON, see schedules.lua
-- ARGV[2]  what became of it: refused, skipped, missed
-- ARGV[3]  why ('' = that says it)
-- Returns  'ok'; 'stale': the schedule doesn't expect it (any more)

local now_ms = clock()
local occurrence, its = cjson.decode(ARGV[1]), schedules()
if not its.expecting(occurrence) then return 'stale' end
its.settle(occurrence, ARGV[2], '', '', ARGV[3], now_ms)
return 'ok'
