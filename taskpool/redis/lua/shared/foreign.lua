-- Which function an RQ job calls, for the scripts that must tell a task from another program's job.
--
-- RQ compresses a job's data with zlib (ours is stored as plain JSON), so the first bytes are inflated here. The work
-- is bounded: CALL_BYTES of output, INPUT_BYTES of input, BLOCKS blocks. Each step of a loop reads at least one bit of
-- input or adds to a table of limited size, so hostile data can't make it slow. Data that isn't a JSON call of a named
-- function has no name.

-- These fields of a record. A key that is no record has none, like a leftover: an error here would come again with each
-- call, for ever, and keep the script from all other jobs.
local function fields_of_record(id, ...)
  local f = redis.pcall('HMGET', KEY.job .. id, ...)
  if not f.err then return f end
  if string.find(f.err, 'WRONGTYPE', 1, true) then return {} end
  error(f.err)
end

-- The functions below, by name. They are made only when a script asks for them: a claim that meets no foreign job
-- doesn't pay.
local function foreign_jobs()
  local CALL_BYTES, INPUT_BYTES, BLOCKS = 200, 2048, 8
  local DATA_BYTES, OUT_BYTES, TABLES_COST = 65536, 50, 8 -- what the costs of `called_function` are computed with

  local inflated, tables -- how many bytes and tables of codes the last call of `inflate_start` made, even if it failed

  -- The first CALL_BYTES that a zlib stream (RFC 1950, RFC 1951) holds. It stops early when they don't start like JSON,
  -- or behind what follows the function's name, and raises an error where the stream is damaged.
  local function inflate_start(data)
    local LENGTHS = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163,
      195, 227, 258}
    local LENGTH_BITS = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
    local DISTANCES = {1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049,
      3073, 4097, 6145, 8193, 12289, 16385, 24577}
    local CODE_ORDER = {17, 18, 19, 1, 9, 8, 10, 7, 11, 6, 12, 5, 13, 4, 14, 3, 15, 2, 16}

    local at, bits, count, out = 3, 0, 0, {} -- behind the zlib header
    local wanted, quotes = CALL_BYTES, 0
    inflated, tables = out, 0

    local function take(n)
      while count < n do
        local byte = string.byte(data, at)
        if not byte or at > INPUT_BYTES then error('the data ends') end
        bits, count, at = bits + byte * 2 ^ count, count + 8, at + 1
      end
      local value = bits % 2 ^ n
      bits, count = (bits - value) / 2 ^ n, count - n
      return value
    end

    -- A canonical Huffman code of these lengths, by length: how many symbols have it; and the symbols in order.
    local function code_of(lengths)
      local counts, offsets, symbols = {}, {[1] = 1}, {}
      for length = 0, 15 do counts[length] = 0 end
      for _, length in ipairs(lengths) do counts[length] = counts[length] + 1 end
      for length = 1, 14 do offsets[length + 1] = offsets[length] + counts[length] end
      for symbol, length in ipairs(lengths) do
        if length > 0 then
          symbols[offsets[length]] = symbol - 1
          offsets[length] = offsets[length] + 1
        end
      end
      return {counts, symbols}
    end

    local function take_bit()
      if count == 0 then
        bits, count, at = string.byte(data, at), 8, at + 1
        if not bits or at > INPUT_BYTES then error('the data ends') end
      end
      local bit = bits % 2
      bits, count = (bits - bit) / 2, count - 1
      return bit
    end

    local function symbol_of(code)
      local counts, value, first, index = code[1], 0, 0, 1
      for length = 1, 15 do
        value = value + take_bit()
        local n = counts[length]
        if value - first < n then return code[2][index + value - first] end
        index, first, value = index + n, (first + n) * 2, value * 2
      end
      error('no such code')
    end

    -- The codes of a block without its own, without tables: most small jobs have only such a block.
    local function fixed_literal()
      local value = 0
      for _ = 1, 7 do value = value * 2 + take_bit() end
      if value < 24 then return 256 + value end
      value = value * 2 + take_bit()
      if value < 192 then return value - 48 end
      if value < 200 then return value + 88 end
      return value * 2 + take_bit() - 256
    end

    local function fixed_distance()
      local value = 0
      for _ = 1, 5 do value = value * 2 + take_bit() end
      return value
    end

    local function dynamic_codes()
      local n_literals, n_distances, n_codes = take(5) + 257, take(5) + 1, take(4) + 4
      local lengths = {}
      for index = 1, 19 do lengths[index] = 0 end
      for index = 1, n_codes do lengths[CODE_ORDER[index]] = take(3) end
      local code, all = code_of(lengths), {}
      while #all < n_literals + n_distances do
        local symbol = symbol_of(code) or error('no such code')
        local length, times = symbol, 1
        if symbol == 16 then
          length, times = all[#all] or error('nothing to repeat'), 3 + take(2)
        elseif symbol == 17 then
          length, times = 0, 3 + take(3)
        elseif symbol == 18 then
          length, times = 0, 11 + take(7)
        end
        for _ = 1, times do all[#all + 1] = length end
      end
      if #all > n_literals + n_distances then error('too many lengths') end
      local distances = {}
      for index = 1, n_distances do distances[index] = all[n_literals + index] end
      for index = #all, n_literals + 1, -1 do all[index] = nil end
      return code_of(all), code_of(distances)
    end

    for _ = 1, BLOCKS do
      local is_last, kind = take(1), take(2)
      if kind == 0 then
        bits, count = 0, 0
        local length = string.byte(data, at) + string.byte(data, at + 1) * 256
        for index = at + 4, math.min(at + 3 + length, at + 4 + CALL_BYTES) do
          out[#out + 1] = string.byte(data, index) or error('the data ends')
        end
        at = at + 4 + length
      else
        local literals, distances
        if kind ~= 1 then
          tables = tables + 1
          literals, distances = dynamic_codes()
        end
        while #out < wanted and (out[1] or 91) == 91 do
          local symbol = literals and symbol_of(literals) or fixed_literal()
          if symbol == 256 then break end
          if symbol < 256 then
            out[#out + 1] = symbol
            if symbol == 34 then
              quotes = quotes + 1
              if quotes == 2 then wanted = math.min(wanted, #out + #', null, [') end
            end
          else
            local length = LENGTHS[symbol - 256] + take(LENGTH_BITS[symbol - 256])
            local distance_symbol = distances and symbol_of(distances) or fixed_distance()
            local extra = distance_symbol < 2 and 0 or (distance_symbol - distance_symbol % 2) / 2 - 1
            local distance = DISTANCES[distance_symbol + 1] + take(extra)
            for _ = 1, length do out[#out + 1] = out[#out + 1 - distance] end
          end
        end
      end
      if is_last == 1 or #out >= wanted or out[1] ~= 91 then break end
    end
    return string.char(unpack(out, 1, math.min(#out, CALL_BYTES)))
  end

  -- The dotted name of the function that a job's data calls, if it is a JSON call of a function and not of a method of
  -- a stored object; else nil. And as how many ids it counts against a script's bound, by the work that it took to
  -- read.
  local function called_function(data)
    local start, cost = string.sub(data, 1, CALL_BYTES), 1 + math.floor(#data / DATA_BYTES)
    if string.byte(data, 1) ~= 91 then
      local is_read, text = pcall(inflate_start, data)
      cost = cost + math.floor(#inflated / OUT_BYTES) + tables * TABLES_COST
      if not is_read then return nil, cost end
      start = text
    end
    return string.match(start, '^%["([%w_.]+)", ?null, ?%['), cost
  end

  -- Whether a record is a task's, or that of a job that calls one of these RQ functions (',a.b,c.d,'). A record with a
  -- type is a task even if its data can't be read any more. `type` is that of the record; its data is read if needed.
  local function is_task(id, type, functions)
    if type and type ~= KEY.unknown_type then return true end
    local data = fields_of_record(id, 'data')[1]
    local name = data and called_function(data)
    return name and (name == KEY.entry_point or string.find(functions, ',' .. name .. ',', 1, true) ~= nil)
  end

  -- Whether an RQ job asks for something that our workers don't do: callbacks, repetition, webhooks, RQ's rate limits
  -- and groups. Run without it, it would be half done.
  local function needs_rq(id)
    for _, value in ipairs(redis.call('HMGET', KEY.job .. id, 'success_callback_name', 'failure_callback_name',
      'stopped_callback_name', 'repeats_left', 'webhooks', 'rate_limit_key', 'group_id')) do
      if value and value ~= '' and value ~= '0' then return true end
    end
    return false
  end

  return {called_function = called_function, is_task = is_task, needs_rq = needs_rq}
end
