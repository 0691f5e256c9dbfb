-- Has a task that a plain RQ worker starts hold its unique key again, if it had ended before.
--
-- ARGV[1]  id
-- Returns  the id of the task that holds the key meanwhile: this one must not run; '' when it may

local _, _, _, rival_of = unique_keys()
return rival_of(ARGV[1], clock()) or ''
