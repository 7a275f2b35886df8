-- Holds a run for an ending that takes several round trips, or tells that it is no longer the worker's.
--
-- ARGV: worker, job id, token, queue, lease (s)
-- Returns 1 if it is the worker's, for at least so long; else 0. The deaths that the job met are forgotten then.
local worker, id, token, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local seconds = server_time()
if read('HGET', TOKENS .. queue, id) ~= token .. ' ' .. worker or not is_at_it(queue, id) then
  return 0
end
write('ZADD', LEASES .. queue, 'GT', seconds + tonumber(ARGV[5]), id)
write('HDEL', DEATHS .. queue, id, id .. ':alone')
return 1
