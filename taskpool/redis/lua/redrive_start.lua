-- Begins the redrive of a group of failures; `redrive.py` drives it.
--
-- ARGV[1]  fingerprint
-- ARGV[2]  id of the redrive, new for each call
-- ARGV[3]  entry of the audit; '' = none
-- ARGV[4+] fields of the redrive and their values
-- Returns  'ok' (also when sent again) | 'gone' (there is no such group) | 'running' (another one hasn't ended)

local fingerprint, id = ARGV[1], ARGV[2]
local key = KEY.redrive .. fingerprint
local f = redis.call('HMGET', key, 'id', 'status')
if f[1] == id then return 'ok' end
if redis.call('EXISTS', KEY.failure .. fingerprint) == 0 then return 'gone' end
if f[2] == 'running' then return 'running' end

redis.call('DEL', key, key .. KEY.redrive_waiting, key .. KEY.redrive_refused)
redis.call('HSET', key, 'id', id, 'status', 'running', unpack(ARGV, 4))
redis.call('SADD', KEY.redrives, fingerprint)
audit_counted(ARGV[3], 0)
return 'ok'
