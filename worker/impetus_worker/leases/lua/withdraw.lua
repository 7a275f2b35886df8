-- Takes a worker's record away, and rings at the others: what it served is theirs.
--
-- ARGV: worker
if redis.call('DEL', 'impetus:worker:' .. ARGV[1]) == 1 then
  for _, key in ipairs(redis.call('SMEMBERS', 'rq:workers')) do
    redis.call('PUBLISH', 'rq:pubsub:' .. string.sub(key, #'rq:worker:' + 1), '{"command": "impetus-look"}')
  end
end
