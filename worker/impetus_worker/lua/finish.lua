-- Ends many jobs of one worker in one step, each only while its lease holds (the fence: its execution hash exists).
--
-- ARGV: worker, now (ISO 8601), now (epoch s), now (whole epoch s), then for each job:
--       id, execution id, queue, verb, payload, time to live (s, -1 for ever), started (epoch s)
--   verb: 'finish' with the base64 return value, 'fail' with the base64 reason, 'abort' the same, dependents or
--         not, 'return' puts the job back at the
--         front of its queue as if it had never been claimed
-- Returns one number a job: 1 done, 0 the lease was lost and nothing was written, 2 has dependents: RQ's own path.
local worker, now_iso, now, now_s = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local worker_key, running = 'rq:worker:' .. worker, 'rq:worker:' .. worker .. ':executions'
local reply, finished, failed, worked = {}, 0, 0, 0

for at = 5, #ARGV, 7 do
  local id, execution, queue, verb, payload = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local ttl, started = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local key, composite, results = 'rq:job:' .. id, id .. ':' .. execution, 'rq:results:' .. id
  local held = redis.call('EXISTS', 'rq:execution:' .. composite) == 1
  local state = redis.call('TYPE', key).ok == 'hash' and redis.call('HMGET', key, 'status', 'impetus_execution') or {}
  if not held or state[1] ~= 'started' or state[2] ~= execution then
    if state[1] ~= 'started' or state[2] ~= execution then
      -- Another's, or cancelled or deleted while it ran: of this run nothing is kept.
      redis.call('DEL', 'rq:execution:' .. composite)
      redis.call('ZREM', 'rq:executions:' .. id, execution)
      redis.call('ZREM', 'rq:wip:' .. queue, composite)
    end  -- Else its lease ran out and nobody has put it back yet: recover.lua finds it by its place in the registry.
    reply[#reply + 1] = 0
  elseif (verb == 'finish' or verb == 'fail') and redis.call('EXISTS', key .. ':dependents') == 1 then
    reply[#reply + 1] = 2
  else
    if verb == 'return' then
      redis.call('HSET', key, 'status', 'queued', 'started_at', '', 'worker_name', '')
      redis.call('LPUSH', 'rq:queue:' .. queue, id)
      local waits = redis.call('HGET', key, 'ttl')
      if waits and tonumber(waits) then redis.call('EXPIRE', key, waits) end
    else
      local ok = verb == 'finish'
      redis.call('HSET', key, 'status', ok and 'finished' or 'failed', 'ended_at', now_iso, 'last_heartbeat', now_iso)
      if redis.call('TYPE', results).ok ~= 'stream' then redis.call('DEL', results) end
      redis.call('XADD', results, 'MAXLEN', '10', '*', 'type', ok and 1 or 2, 'worker_name', worker,
                 ok and 'return_value' or 'exc_string', payload, 'execution_id', execution,
                 'execution_started_at', ARGV[at + 6], 'execution_ended_at', ARGV[3])
      if ttl >= 0 then
        redis.call('EXPIRE', results, ttl)
        redis.call('EXPIRE', key, ttl)
        redis.call('EXPIRE', 'rq:job::' .. id .. ':dependencies', ttl)  -- two colons, as RQ has it
      else
        redis.call('PERSIST', results)
      end
      redis.call('ZADD', (ok and 'rq:finished:' or 'rq:failed:') .. queue, ttl < 0 and '+inf' or now_s + ttl, id)
      if ok then finished = finished + 1 else failed = failed + 1 end
      worked = worked + now - started
    end
    redis.call('HDEL', key, 'impetus_execution')
    if verb ~= 'return' then redis.call('HDEL', key, 'impetus_alone', 'impetus_suspect', 'impetus_deaths') end
    redis.call('DEL', 'rq:execution:' .. composite, 'rq:executions:' .. id)
    redis.call('ZREM', 'rq:wip:' .. queue, composite)
    reply[#reply + 1] = 1
  end
  -- Whatever became of it, this worker no longer runs it; only a job on RQ's own path stays in its books.
  if reply[#reply] ~= 2 then redis.call('SREM', running, composite) end
end
-- A hash that expired meanwhile must not come back as a worker of two fields.
if redis.call('EXISTS', worker_key) == 1 then
  if finished > 0 then redis.call('HINCRBY', worker_key, 'successful_job_count', finished) end
  if failed > 0 then redis.call('HINCRBY', worker_key, 'failed_job_count', failed) end
  if worked > 0 then redis.call('HINCRBYFLOAT', worker_key, 'total_working_time', worked) end
  if redis.call('EXISTS', running) == 0 and redis.call('HGET', worker_key, 'state') == 'busy' then
    redis.call('HSET', worker_key, 'state', 'idle')
  end
end
return reply
