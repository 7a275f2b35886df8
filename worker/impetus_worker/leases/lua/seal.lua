-- Holds a job for an ending that takes several round trips, or tells that its lease was lost.
--
-- ARGV: id, execution id, lease (s)
-- Returns 1 if the lease holds, and now for at least so long; 0 if it was lost. The job's deaths are forgotten.
local execution = 'rq:execution:' .. ARGV[1] .. ':' .. ARGV[2]
local state = redis.call('HMGET', 'rq:job:' .. ARGV[1], 'status', 'impetus_execution')
if redis.call('EXISTS', execution) == 0 or state[1] ~= 'started' or state[2] ~= ARGV[2] then return 0 end
if redis.call('TTL', execution) < tonumber(ARGV[3]) then redis.call('EXPIRE', execution, ARGV[3]) end
redis.call('HDEL', 'rq:job:' .. ARGV[1], 'impetus_alone', 'impetus_suspect', 'impetus_deaths')
return 1
