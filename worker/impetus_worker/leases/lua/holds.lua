-- Whether a run that is to be ended by RQ's means is the worker's yet.
--
-- ARGV: worker, job id, token, queue
-- Returns 1 or 0.
local worker, id, token, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if read('HGET', TOKENS .. queue, id) ~= token .. ' ' .. worker or not is_at_it(queue, id) then
  return 0
end
write('HDEL', DEATHS .. queue, '')  -- nothing: a server that takes no writes now says so before a callback runs
return 1
