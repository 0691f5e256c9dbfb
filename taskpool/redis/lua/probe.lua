-- A write that changes nothing, made by a script as all of ours are. Redis answers it with the error that it has for
-- them at the moment, if any. Unlike most scripts it is refused when the memory is full, as a submission is.
--
-- Returns  'ok'

redis.call('SETRANGE', KEY.nothing, 0, '')
return 'ok'
