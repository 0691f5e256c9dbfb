-- Keeps a chunk of tasks of a workflow, and nodes, until the commit. Nothing of them is listed or run before it.
--
-- ARGV[1]   token: names the chunks and nodes that are committed together
-- ARGV[2]   how many chunks of the token come before this one
-- ARGV[3]   the chunk: the arguments of add.lua as a JSON list; '' = none
-- ARGV[4+]  nodes: name, its place (the number of its first member), the node as JSON
-- Returns   'ok' (also when sent again) | 'lost' (the chunks before this one have expired)

local staged = KEY.staged .. ARGV[1]
local place = tonumber(ARGV[2])
local held = redis.call('LLEN', staged)
if held < place then return 'lost' end

if ARGV[3] ~= '' and held == place then redis.call('RPUSH', staged, ARGV[3]) end
for at = 4, #ARGV, 3 do
  redis.call('ZADD', staged .. KEY.workflow_order, ARGV[at + 1], ARGV[at])
  redis.call('HSET', staged .. KEY.workflow_nodes, ARGV[at], ARGV[at + 2])
end
for _, part in ipairs({'', KEY.workflow_order, KEY.workflow_nodes}) do
  redis.call('EXPIRE', staged .. part, KEY.staged_ttl_s)
end
return 'ok'
