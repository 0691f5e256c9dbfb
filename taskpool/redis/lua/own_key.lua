-- Has a task that a plain RQ worker starts hold its unique key again, if it had ended before.
--
-- ARGV[1]  id
-- Returns  the id of the task that holds the key meanwhile: this one must not run; '' when it may

return unique_keys().rival_of(ARGV[1], clock()) or ''
