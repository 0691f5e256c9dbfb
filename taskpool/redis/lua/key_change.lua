-- Makes, replaces or removes an API key, if it is still what was read of it.
--
-- ARGV[1]  id
-- ARGV[2]  the document that it must have now; '' = there must be none
-- ARGV[3]  the document that it gets; '' = it is removed
-- ARGV[4]  entry of the audit; '' = none
-- ARGV[5]  '1' = it may not be the first key
-- Returns  'ok' (also when sent again) | 'changed' (it is another by now; nothing was done) | 'first' (it would be the
--          first key; nothing was done)

local found = redis.call('HGET', KEY.api_keys, ARGV[1]) or ''
if found == ARGV[3] then return 'ok' end
if found ~= ARGV[2] then return 'changed' end
if ARGV[5] == '1' and redis.call('EXISTS', KEY.api_keys) == 0 then return 'first' end
if ARGV[3] == '' then
  pass_when_full()
  redis.call('HDEL', KEY.api_keys, ARGV[1])
  redis.call('HDEL', KEY.api_keys_used, ARGV[1])
else
  redis.call('HSET', KEY.api_keys, ARGV[1], ARGV[3])
end
audit(KEY.audit, ARGV[4])
return 'ok'
