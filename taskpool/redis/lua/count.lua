-- Adds to the counters of the metrics.
--
-- ARGV     alternating field and increment
-- Returns  'ok'

pass_when_full()
for at = 1, #ARGV, 2 do redis.call('HINCRBY', KEY.counters, ARGV[at], ARGV[at + 1]) end
return 'ok'
