-- Takes queued tasks out of their queues, several at once: LREM looks at each id up to the one that it removes, and would
-- take milliseconds for each of them in a queue of 100,000.

-- Functions by name. `hints`: by queue, how many ids stand behind the places where tasks were found last. `find` looks near
-- there first, and searches a whole queue only once in a call.
local function taker(hints)
  local places, has_searched = {}, false

  local function read(place, center)
    local from = math.max(center - KEY.take_window, 0)
    for n, id in ipairs(redis.call('LRANGE', place.key, from, center + KEY.take_window)) do place.index[id] = from + n - 1 end
  end

  local function place_of(queue)
    local place = places[queue]
    if not place then
      place = {key = KEY.queue .. queue, index = {}, taken = {}, hints = {unpack(hints[queue] or {})}}
      place.length = redis.call('LLEN', place.key)
      places[queue] = place
    end
    return place
  end

  -- Whether a task stands in a queue; nil: it would have to be searched for, which is for the next call.
  local function find(queue, id)
    local place = place_of(queue)
    while not place.index[id] and place.hints[1] do read(place, place.length - table.remove(place.hints, 1)) end
    if place.index[id] then return true end
    if has_searched then return nil end
    has_searched = true
    local index = redis.call('LPOS', place.key, id, 'RANK', -1)
    if not index then return false end
    read(place, index)
    return true
  end

  -- Takes out a task that was found.
  local function take(queue, id)
    local place = places[queue]
    if #place.taken == 0 then pass_when_full() end
    local index = place.index[id]
    redis.call('LSET', place.key, index, KEY.nothing)
    place.taken[#place.taken + 1] = index
    place.lowest, place.highest = math.min(place.lowest or index, index), math.max(place.highest or index, index)
    place.index[id] = nil
  end

  -- How many ids LREM passes in a queue when it begins at the nearer end.
  local function passed_in(place)
    return place.highest and math.min(place.highest, place.length - place.lowest) or 0
  end

  -- Removes what `take` has marked, from the nearer end of each queue. Returns the hints for the next call.
  local function finish()
    local after = {}
    for queue, kept in pairs(hints) do after[queue] = kept end -- also of queues that this call takes nothing from
    for queue, place in pairs(places) do
      local count, found = #place.taken, hints[queue] or {}
      if count > 0 then
        redis.call('LREM', place.key, place.highest < place.length - place.lowest and count or -count, KEY.nothing)
        local kept = {place.length - place.taken[count]}
        for _, behind in ipairs(found) do
          local is_new = #kept < KEY.take_places
          for _, other in ipairs(kept) do is_new = is_new and math.abs(other - behind) > KEY.take_window end
          if is_new then kept[#kept + 1] = behind end
        end
        for n, behind in ipairs(kept) do
          for _, index in ipairs(place.taken) do
            if place.length - index < behind then kept[n] = kept[n] - 1 end
          end
        end
        found = kept
      end
      after[queue] = found
    end
    return after
  end

  -- A clock in microseconds, for differences: from Redis 7.2 on TIME stands still in a script, and there is os.clock, its CPU
  -- time; before, there is no os.clock, and TIME goes on.
  local function elapsed_us()
    local os = rawget(_G, 'os')
    if os then return os.clock() * 1e6 end
    local time = redis.call('TIME')
    return time[1] * 1e6 + time[2]
  end

  -- Calls `change` for each id in ARGV from `first` on, until it returns nil, or until this call takes long with what
  -- `finish` will need: Redis serves no other client meanwhile. The others are left to the next call.
  -- Returns {the hints for it, a word for each id that was changed: what `change` returned, or 'unreadable'}.
  local function change_each(first, change)
    local reply, ends_us = {''}, elapsed_us() + KEY.take_us

    local function takes_long()
      local finish_us = 0
      for _, place in pairs(places) do finish_us = finish_us + passed_in(place) / KEY.take_passed end
      return elapsed_us() + finish_us > ends_us
    end

    for at = first, #ARGV do
      if at > first and takes_long() then break end
      local is_read, word = pcall(change, ARGV[at]) -- what was taken out of queues before has still to be removed
      if is_read and not word then break end
      reply[#reply + 1] = is_read and word or 'unreadable'
    end
    reply[1] = cjson.encode(finish())
    return reply
  end

  return {find = find, take = take, change_each = change_each}
end
