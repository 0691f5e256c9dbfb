-- Reads the oldest events of the outbox, for one supervisor at a time. That only saves work: if two supervisors read it
-- at once, `deliver` still makes each event's deliveries once.
--
-- ARGV[1]  supervisor; ARGV[2] for so many ms; ARGV[3] at most so many events
-- Returns  {every endpoint as JSON, events as XRANGE tells them}, or {} when there is none or another supervisor reads it

if redis.call('XLEN', KEY.webhooks_outbox) == 0 then return {} end
local holder = redis.call('GET', KEY.webhooks_sorter)
if holder and holder ~= ARGV[1] then
  local left_ms = redis.call('PTTL', KEY.webhooks_sorter)
  -- One that lasts for longer was written before the clock was set back.
  if left_ms <= tonumber(ARGV[2]) then return {} end
end
pass_when_full()
redis.call('SET', KEY.webhooks_sorter, ARGV[1], 'PX', ARGV[2])
return {redis.call('HVALS', KEY.webhooks), redis.call('XRANGE', KEY.webhooks_outbox, '-', '+', 'COUNT', ARGV[3])}
