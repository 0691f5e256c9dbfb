-- Drops the entries of unique keys that no task holds any more. A backstop, in bounded steps through the hash.
--
-- ARGV[1]  the cursor to go on from ('0' = from the start); ARGV[2] about so many
-- Returns  the cursor to go on from; '0' at the end

local now_ms = clock()
local holder_of = unique_keys().holder_of
local found = redis.call('HSCAN', KEY.unique, ARGV[1], 'COUNT', ARGV[2])
for at = 1, #found[2], 2 do
  local name = found[2][at]
  if not holder_of(name, now_ms) then redis.call('HDEL', KEY.unique, name) end
end
return found[1]
