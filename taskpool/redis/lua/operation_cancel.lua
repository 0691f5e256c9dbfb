-- Cancels an operation. What it has done stays done.
--
-- ARGV[1]  id
-- ARGV[2]  how long what it has done can be undone, in seconds; '' = never
-- ARGV[3]  entry of the audit; '' = none
-- Returns  'ok' | 'gone' | the word of the status that doesn't allow it ('canceled' also when sent again)

local id = ARGV[1]
local status = redis.call('HGET', KEY.operation .. id, 'status')
if not status then return 'gone' end
if status ~= KEY.operation_running then return status end
pass_when_full()
end_operation(id, KEY.operation_canceled, tonumber(ARGV[2]), ARGV[3], (clock()))
return 'ok'
