-- Whether a run that is to be ended by RQ's means is the worker's yet. Then the deaths that its job met are forgotten.
--
-- ARGV: worker, job id, token, queue
-- Returns 1 or 0.
local worker, id, token, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if read('HGET', TOKENS .. queue, id) ~= token .. ' ' .. worker or not is_at_it(queue, id) then
  return 0
end
write('HDEL', DEATHS .. queue, id, id .. ':alone')
return 1
