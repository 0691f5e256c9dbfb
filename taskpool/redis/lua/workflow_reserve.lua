-- Reserves numbers for tasks that are to be added to a workflow. Numbers that aren't used do no harm.
--
-- ARGV[1]  id of the workflow
-- ARGV[2]  how many
-- Returns  the first number, or false: the workflow is gone. Sent again, it reserves others

local key = KEY.workflow .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return false end
return redis.call('HINCRBY', key, 'reserved', ARGV[2]) - ARGV[2] + 1
