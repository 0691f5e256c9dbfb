-- Names of queues, tags and unique keys, and how many of them a project may use.

-- The functions below, by name; `caps` says how many queues, tags, unique_keys and idempotency_keys a project may use (0 or
-- nil: any number).
local function used_names(caps)
  local INDEX = {queues = KEY.queues, tags = KEY.tags}
  local entering, listing = {}, {} -- new members of the indexes; by the key of a project's list of names: see `look_at`

  local function most_of(kind, project)
    return (caps[kind] or 0) * (project == '' and KEY.without_project or 1)
  end

  local function is_known(kind, name)
    if kind == 'unique_keys' then return redis.call('HEXISTS', KEY.unique, name) == 1 end
    return redis.call('SISMEMBER', INDEX[kind], name) == 1
  end

  -- Notes that a project uses a name.
  local looked_at = {}
  local function look_at(kind, name, project)
    if looked_at[kind .. name] then return end
    looked_at[kind .. name] = true
    if INDEX[kind] then
      if is_known(kind, name) then return end
      table.insert(entering, {INDEX[kind], name})
    end
    local list, most_used = KEY.used .. kind .. ':' .. project, most_of(kind, project)
    if most_used == 0 then return end
    local is_listed = redis.call('SISMEMBER', list, name) == 1
    if is_listed and not INDEX[kind] then return end
    local its = listing[list] or {kind = kind, project = project, most = most_used, names = {}, gone = {}, more = 0}
    listing[list] = its
    table.insert(its.names, name)
    if not is_listed then its.more = its.more + 1 end
  end

  -- The refusal of a call that would exceed a cap; nil: it may use the names. When a project has reached a cap, names
  -- that are gone are dropped from its list: some with each call, because there may be many. `once`: its idempotency key.
  local function reached(once, project)
    for list, its in pairs(listing) do
      local held = redis.call('SCARD', list)
      if held + its.more > its.most then
        for _, name in ipairs(redis.call('SRANDMEMBER', list, KEY.used_sample)) do
          if not is_known(its.kind, name) then table.insert(its.gone, name) end
        end
        if held + its.more - #its.gone > its.most then
          if #its.gone > 0 then redis.call('SREM', list, unpack(its.gone)) end
          return {'capped', its.kind, its.project, its.most}
        end
      end
    end
    local most_keys = once and most_of('idempotency_keys', project) or 0
    if most_keys == 0 then return nil end
    once.count = KEY.once_count .. project
    if tonumber(redis.call('GET', once.count) or 0) >= most_keys then
      return {'capped', 'idempotency_keys', project, most_keys}
    end
  end

  -- Enters the names, after all checks.
  local function enter()
    for _, entry in ipairs(entering) do redis.call('SADD', entry[1], entry[2]) end
    for list, its in pairs(listing) do
      if #its.gone > 0 then redis.call('SREM', list, unpack(its.gone)) end
      for _, name in ipairs(its.names) do redis.call('SADD', list, name) end
    end
  end

  -- Counts an idempotency key that is used for the first time.
  local function count(once)
    if once.count and redis.call('INCR', once.count) == 1 then redis.call('PEXPIRE', once.count, once.kept_ms) end
  end

  return {look_at = look_at, reached = reached, enter = enter, count = count}
end
