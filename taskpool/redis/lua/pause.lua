-- Pauses a queue, a worker pool or everything: claims leave it alone. Or has a pool drain. The first pause counts until it
-- ends; only a drain takes the place of a pause.
--
-- ARGV[1]  'all', 'queue:' and a queue, or 'pool:' and a pool's id
-- ARGV[2]  who pauses it and why, a JSON object with at least one member; of a drain with "drain":true
-- ARGV[3]  entry of the audit ('' = none)
-- Returns  the pause as JSON, with its time in `at_ms`; false: there is no such pool

local pool = string.match(ARGV[1], '^pool:(.+)$')
if pool and redis.call('EXISTS', KEY.pool .. pool) == 0 then return false end

-- Quotes in a text are escaped, so this is a member.
local function is_drain(json)
  return string.find(json, '"drain":true', 1, true) ~= nil
end

local before = redis.call('HGET', KEY.switches, ARGV[1])
if before and (is_drain(before) or not is_drain(ARGV[2])) then return before end
pass_when_full() -- a pause may be what helps
local now_ms = clock()
local json = string.format('{"at_ms":%.0f,%s', now_ms, string.sub(ARGV[2], 2))
redis.call('HSET', KEY.switches, ARGV[1], json)
audit(KEY.audit_tasks, ARGV[3])
-- A message that is lost costs only time: the pool finds it with its next heartbeat.
if is_drain(json) then redis.call('PUBLISH', KEY.commands .. pool, '{"command":"taskpool-drain"}') end
return json
