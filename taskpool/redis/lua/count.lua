-- Adds to the counts of this minute, from which the metrics' totals and the history are made.
--
-- ARGV[1]  who counts ('' = a call that isn't sent again); ARGV[2] the number of this report
-- ARGV[3+] alternating field (of KEY.counters, '|', build) and increment
-- Returns  'ok', also when sent again: then it adds nothing

pass_when_full()
if #ARGV < 3 then return 'ok' end
local minute, reported = minute_of(clock()), KEY.stats_reported .. ARGV[1]
if ARGV[1] ~= '' then
  if redis.call('GET', reported) == ARGV[2] then return 'ok' end
  redis.call('SET', reported, ARGV[2], 'EX', KEY.reported_ttl_s)
end
redis.call('SADD', KEY.stats_open, minute)
for at = 3, #ARGV, 2 do redis.call('HINCRBY', KEY.stats_counted .. minute, ARGV[at], ARGV[at + 1]) end
return 'ok'
