-- Takes up to max_jobs jobs off the queues, in the queues' order, and writes all that RQ keeps about a started job.
-- One step: a worker that dies before or after it has lost nothing. A suspect, which was in flight when a worker died,
-- is taken only by a worker that has nothing else in flight, and alone.
--
-- KEYS: the queues' lists
-- ARGV: worker, now (ISO 8601), now (epoch s), lease (s), registry score, max jobs, max bytes, execution id prefix,
--       idle (1|0), then the queues' names in the order of KEYS
-- Returns {0: go on, 1: suspended, 2: a suspect waits for an idle worker; {job id, execution id, queue's position, {field, value, ...}}, ...}
local worker, now_iso, now, lease, score = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local max_jobs, max_bytes, prefix, idle = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9] == '1'

if redis.call('EXISTS', 'rq:suspended') == 1 then return {1} end

-- Its id was in the queue twice, as after an enqueueing that was sent again: it ran, and RQ's requeue sets 'queued'.
local ENDED = {canceled = true, finished = true, failed = true, stopped = true}
local reply, bytes, done = {0}, 0, false
local running = 'rq:worker:' .. worker .. ':executions'
for position, queue_key in ipairs(KEYS) do
  local queue = ARGV[9 + position]
  while #reply <= max_jobs and bytes < max_bytes and not done do
    local id = redis.call('LPOP', queue_key)
    if not id then break end
    local key = 'rq:job:' .. id
    local is_hash = redis.call('TYPE', key).ok == 'hash'
    local old = is_hash and redis.call('HMGET', key, 'status', 'impetus_execution', 'impetus_suspect', 'worker_name') or {}
    -- RQ's keys join ids with a colon, so an id that holds one would spoil the registries.
    if is_hash and not string.find(id, '^[%w_%-]+$') then
      redis.call('HSET', key, 'status', 'failed')
      -- RQ reads a registry's ids as UTF-8, all of them or none.
      if not string.find(id, '[\128-\255]') then redis.call('ZADD', 'rq:failed:' .. queue, score, id) end
    elseif is_hash and not ENDED[old[1]]
        -- Enqueued twice and running now: the run under way is the one that counts.
        and not (old[1] == 'started' and old[2]
                 and redis.call('EXISTS', 'rq:execution:' .. id .. ':' .. old[2]) == 1) then
      local suspect = old[3] == '1'
      if suspect and (#reply > 1 or not idle) then
        redis.call('LPUSH', queue_key, id)
        reply[1] = 2
        done = true
        break
      end
      done = suspect
      if old[2] then
        -- Enqueued again while a dead worker held it: that run is over.
        redis.call('ZREM', 'rq:wip:' .. queue, id .. ':' .. old[2])
        if old[4] then redis.call('SREM', 'rq:worker:' .. old[4] .. ':executions', id .. ':' .. old[2]) end
      end
      local execution = prefix .. #reply
      local composite = id .. ':' .. execution
      redis.call('HSET', key, 'status', 'started', 'started_at', now_iso, 'last_heartbeat', now_iso,
                 'worker_name', worker, 'impetus_execution', execution)
      if suspect then redis.call('HSET', key, 'impetus_alone', 1) end
      redis.call('PERSIST', key)
      redis.call('HSET', 'rq:execution:' .. composite, 'id', execution, 'job_id', id, 'created_at', now,
                 'last_heartbeat', now, 'worker_name', worker)
      redis.call('EXPIRE', 'rq:execution:' .. composite, lease)
      redis.call('DEL', 'rq:executions:' .. id)
      redis.call('ZADD', 'rq:executions:' .. id, score, execution)
      redis.call('EXPIRE', 'rq:executions:' .. id, lease + 60)
      redis.call('ZADD', 'rq:wip:' .. queue, score, composite)
      redis.call('SADD', running, composite)
      local fields = redis.call('HGETALL', key)
      for i = 1, #fields, 2 do bytes = bytes + #fields[i + 1] end
      reply[#reply + 1] = {id, execution, position, fields}
    end
  end
end
if #reply > 1 then
  redis.call('EXPIRE', running, lease + 600)
  redis.call('HSET', 'rq:worker:' .. worker, 'state', 'busy')
end
return reply
