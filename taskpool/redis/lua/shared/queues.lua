-- The number of the first argument, from `first` to `last`, that names a queue which isn't empty; nil: all are. It asks for
-- half of them at a time, so among 50 queues it takes 7 commands.
local function first_waiting(first, last)
  local function is_any_waiting(from, to)
    local places = {}
    for argument = from, to do places[#places + 1] = KEY.queue .. ARGV[argument] end
    return #places > 0 and redis.call('EXISTS', unpack(places)) > 0
  end

  if not is_any_waiting(first, last) then return nil end
  while first < last do
    local middle = math.floor((first + last) / 2)
    if is_any_waiting(first, middle) then last = middle else first = middle + 1 end
  end
  return first
end
