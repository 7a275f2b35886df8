-- Changes the queues that a worker listens to, as `rq info` reads them: all at once, so that none looks abandoned.
--
-- ARGV: worker, name of the standby queue, how many of the rest it listens to, these, all it may listen to
local key, standby, count = 'rq:worker:' .. ARGV[1], ARGV[2], tonumber(ARGV[3])
for at = 4 + count, #ARGV do redis.call('SREM', 'rq:workers:' .. ARGV[at], key) end
local queues = {}
for at = 4, 3 + count do
  queues[#queues + 1] = ARGV[at]
  redis.call('SADD', 'rq:workers:' .. ARGV[at], key)
end
-- A record that ran out comes back whole with the next heartbeat.
if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'queues', table.concat(queues, ',')) end
-- rq lists workers by the queues it lists.
if redis.call('EXISTS', 'rq:workers:' .. standby) == 1 then
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. standby)
elseif redis.call('EXISTS', 'rq:queue:' .. standby) == 0 then
  redis.call('SREM', 'rq:queues', 'rq:queue:' .. standby)
end
