-- Notes that an API key was used now. A key that was removed meanwhile leaves nothing behind.
--
-- ARGV[1]  id
-- Returns  'ok' | 'gone'

if redis.call('HEXISTS', KEY.api_keys, ARGV[1]) == 0 then return 'gone' end
redis.call('HSET', KEY.api_keys_used, ARGV[1], (clock()))
return 'ok'
