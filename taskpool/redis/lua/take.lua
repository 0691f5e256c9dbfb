-- Takes tokens out of a bucket that fills by itself. One that is full isn't kept.
--
-- ARGV[1]  name of the bucket
-- ARGV[2]  tokens that come in a second
-- ARGV[3]  most tokens it holds
-- ARGV[4]  how many are wanted
-- ARGV[5]  how many are needed: with fewer none is taken
-- Returns  {how many were taken, how many whole ones are left, ms until there are as many as are needed}

local key, rate, most = KEY.bucket .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local wanted, needed = tonumber(ARGV[4]), tonumber(ARGV[5])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + time[2] / 1000
local held, since_ms = string.match(redis.call('GET', key) or '', '^(%S+) (%S+)$')
local tokens = most
-- Redis's clock may have been set back: then nothing came since.
if held then tokens = math.min(most, held + math.max(now_ms - since_ms, 0) * rate / 1000) end

local taken = math.min(wanted, math.floor(tokens))
if taken < needed then taken = 0 end
if taken > 0 then
  tokens = tokens - taken
  pass_when_full() -- what is asked for may be a read
  redis.call('SET', key, string.format('%.6f %.3f', tokens, now_ms), 'PX', math.ceil((most - tokens) / rate * 1000) + 1)
end
return {taken, math.floor(tokens), math.max(math.ceil((needed - tokens) / rate * 1000), 0)}
