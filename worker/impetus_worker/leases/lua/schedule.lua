-- Puts scheduled jobs that are due on their queue, a part of them a call; RQ's scheduler reads all of them at once.
--
-- ARGV: queue, how many at most
-- Returns {how many were due, the ids of those that RQ itself must enqueue}.
local queue, registry = ARGV[1], 'rq:scheduled:' .. ARGV[1]
-- A stock scheduler that works here takes its time between reading and removing: the queue is its own meanwhile.
-- A lock without an end is nobody's who lives.
if call('PTTL', 'rq:scheduler-lock:' .. queue) > 0 then return {0, {}} end
local seconds, micros = server_time()
local now_iso, now = iso(seconds, micros), string.format('%d.%06d', seconds, micros)
local ids, for_rq = read('ZRANGEBYSCORE', registry, '-inf', now, 'LIMIT', 0, ARGV[2]) or {}, {}
for _, id in ipairs(ids) do
  local key = 'rq:job:' .. id
  local job = read('HMGET', key, 'status', 'enqueue_at_front', 'ttl', 'rate_limit_key')
  -- On a queue already, or over: what is left of it in the registry goes.
  local waits = job and job[1] and (job[1] == 'scheduled' or not is_where_it_says(queue, id, job[1]))
  if waits then
    if job[4] then
      for_rq[#for_rq + 1] = id  -- it stays in the registry until RQ has enqueued it
    else
      call('HSET', key, 'status', 'queued', 'enqueued_at', now_iso)
      local ttl = whole(job[3], MAX_TTL_S)
      if ttl and ttl > 0 then call('EXPIRE', key, ttl) end
      write(job[2] == '1' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. queue, id)
    end
  end
  if not (waits and job[4]) then write('ZREM', registry, id) end
end
if #ids > 0 then write('SADD', 'rq:queues', 'rq:queue:' .. queue) end
return {#ids, for_rq}
