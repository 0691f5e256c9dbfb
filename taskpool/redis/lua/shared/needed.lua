-- Tasks that may still read how what they depended on has ended: the sets KEY.needed.

-- Whether one of them still needs that: one that hasn't ended, or that may be retried and then needs the result of one that
-- is done. Drops the others, in bounded steps. The second value is false if some have still to be looked at.
local function is_needed(ref, is_done)
  local needed, is_one_left = KEY.needed .. ref, false
  pass_when_full()
  for _, child in ipairs(redis.call('SSCAN', needed, 0, 'COUNT', KEY.needed_step)[2]) do
    local status = redis.call('HGET', KEY.job .. child, 'status')
    if status and status ~= RQ.done and (is_done or not RQ_SET.terminal[status]) then
      is_one_left = true
    else
      redis.call('SREM', needed, child)
    end
  end
  return is_one_left or redis.call('EXISTS', needed) == 1, is_one_left
end
