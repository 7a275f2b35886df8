-- Extends the leases of jobs in flight.
--
-- ARGV: worker, now (ISO 8601), now (epoch s), lease (s), registry score, then for each job: id, execution id, queue
-- Returns the ids of the jobs whose lease had run out: they are no longer this worker's.
local lost = {}
local lease, score = tonumber(ARGV[4]), ARGV[5]
for at = 6, #ARGV, 3 do
  local id, composite = ARGV[at], ARGV[at] .. ':' .. ARGV[at + 1]
  local execution = 'rq:execution:' .. composite
  local ttl = redis.call('TTL', execution)
  if ttl ~= -2 then
    -- EXPIRE comes first: a server out of memory allows it, and what a script does after its first write.
    redis.call('EXPIRE', execution, math.max(ttl, lease))
    redis.call('HSET', execution, 'last_heartbeat', ARGV[3])
    redis.call('EXPIRE', 'rq:executions:' .. id, lease + 60)
    redis.call('ZADD', 'rq:wip:' .. ARGV[at + 2], 'XX', score, composite)
    if redis.call('EXISTS', 'rq:job:' .. id) == 1 then
      redis.call('HSET', 'rq:job:' .. id, 'last_heartbeat', ARGV[2])
    end
  else
    lost[#lost + 1] = id
    redis.call('SREM', 'rq:worker:' .. ARGV[1] .. ':executions', composite)
  end
end
if #ARGV > 5 then redis.call('EXPIRE', 'rq:worker:' .. ARGV[1] .. ':executions', lease + 600) end
local worker_key = 'rq:worker:' .. ARGV[1]
if #lost > 0 and redis.call('EXISTS', worker_key .. ':executions') == 0
    and redis.call('HGET', worker_key, 'state') == 'busy' then
  redis.call('HSET', worker_key, 'state', 'idle')
end
return lost
