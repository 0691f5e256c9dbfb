-- The ids of a workflow's members, as expansion.py makes them.

-- The id of the member with this number.
local function member_id(workflow, number)
  local digits = ''
  for _ = 1, 4 do
    local digit = number % 32
    digits = string.sub('0123456789abcdefghijklmnopqrstuv', digit + 1, digit + 1) .. digits
    number = (number - digit) / 32
  end
  return string.sub(workflow, 1, 16) .. digits
end
