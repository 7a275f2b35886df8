-- Takes up to max_jobs jobs off the queues, in the queues' order, and writes all that RQ keeps about a started job.
-- One step: a worker that dies before or after it has lost nothing. A suspect, which was in flight when a worker died,
-- is taken only by a worker that has nothing else in flight, and alone.
--
-- KEYS: the queues' lists
-- ARGV: worker, now (ISO 8601), now (epoch s), lease (s), registry score, max jobs, max bytes, execution id prefix,
--       idle (1|0), then the queues' names in the order of KEYS
-- Returns {0: go on, 1: suspended, 2: a suspect waits for an idle worker;
--          {job id, execution id, queue's position, {field, value, ...} as they were}, ...}
local call = redis.call
local worker, now_iso, now, lease, score = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local max_jobs, max_bytes, prefix, idle = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9] == '1'

if call('EXISTS', 'rq:suspended') == 1 then return {1} end

-- Its id was in the queue twice, as after an enqueueing that was sent again: it ran, and RQ's requeue sets 'queued'.
local ENDED = {canceled = true, finished = true, failed = true, stopped = true}
local reply, bytes = {0}, 0

-- What the job's hash holds, as a flat list and by name; nothing where there is no such hash.
local function read(key)
  local fields = redis.pcall('HGETALL', key)
  if fields.err or #fields == 0 then return nil end
  local named = {}
  for i = 1, #fields, 2 do
    named[fields[i]] = fields[i + 1]
    bytes = bytes + #fields[i + 1]
  end
  return fields, named
end

-- RQ's keys join ids with a colon, so an id that holds one would spoil the registries.
local function fail(id, key, queue)
  call('HSET', key, 'status', 'failed')
  -- RQ reads a registry's ids as UTF-8, all of them or none.
  if not string.find(id, '[\128-\255]') then call('ZADD', 'rq:failed:' .. queue, score, id) end
end

local function runs(id, job)
  return job.status == 'started' and job.impetus_execution
      and call('EXISTS', 'rq:execution:' .. id .. ':' .. job.impetus_execution) == 1
end

-- Enqueued again while a dead worker held it: that run is over.
local function end_earlier_run(id, job, queue)
  local composite = id .. ':' .. job.impetus_execution
  call('ZREM', 'rq:wip:' .. queue, composite)
  call('DEL', 'rq:executions:' .. id)
  if job.worker_name then call('SREM', 'rq:worker:' .. job.worker_name .. ':executions', composite) end
end

-- Writes what is the job's own; the registries are written for many jobs at once.
local function start(id, key, execution, suspect)
  call('HSET', key, 'status', 'started', 'started_at', now_iso, 'last_heartbeat', now_iso, 'worker_name', worker,
       'impetus_execution', execution)
  if suspect then call('HSET', key, 'impetus_alone', 1) end
  call('PERSIST', key)
  local lease_key, runs_key = 'rq:execution:' .. id .. ':' .. execution, 'rq:executions:' .. id
  call('HSET', lease_key, 'id', execution, 'job_id', id, 'created_at', now, 'last_heartbeat', now,
       'worker_name', worker)
  call('EXPIRE', lease_key, lease)
  if type(redis.pcall('ZADD', runs_key, score, execution)) == 'table' then  -- an error: it is no sorted set
    call('DEL', runs_key)
    call('ZADD', runs_key, score, execution)
  end
  call('EXPIRE', runs_key, lease + 60)
end

-- Returns whether the claim goes on after this queue.
local function claim_from(queue_key, queue, position)
  local wip, held, go_on = {}, {}, true
  while go_on and #reply <= max_jobs and bytes < max_bytes do
    local ids = call('LPOP', queue_key, math.min(256, max_jobs + 1 - #reply))
    if not ids then break end
    local at = 1
    while at <= #ids and go_on and bytes < max_bytes do
      local id = ids[at]
      local key = 'rq:job:' .. id
      local fields, job = read(key)
      if fields and not string.find(id, '^[%w_%-]+$') then
        fail(id, key, queue)
      -- Enqueued twice and running now: the run under way is the one that counts.
      elseif fields and not ENDED[job.status] and not runs(id, job) then
        local suspect = job.impetus_suspect == '1'
        if suspect and (#reply > 1 or not idle) then
          reply[1] = 2
          go_on = false
          break
        end
        go_on = not suspect
        if job.impetus_execution then end_earlier_run(id, job, queue) end
        local execution = prefix .. #reply
        start(id, key, execution, suspect)
        held[#held + 1] = id .. ':' .. execution
        wip[#wip + 1] = score
        wip[#wip + 1] = held[#held]
        reply[#reply + 1] = {id, execution, position, fields}
      end
      at = at + 1
    end
    for back = #ids, at, -1 do call('LPUSH', queue_key, ids[back]) end
    if #held > 0 then
      call('ZADD', 'rq:wip:' .. queue, unpack(wip))
      call('SADD', 'rq:worker:' .. worker .. ':executions', unpack(held))
      wip, held = {}, {}
    end
  end
  return go_on
end

for position, queue_key in ipairs(KEYS) do
  if not claim_from(queue_key, ARGV[9 + position], position) then break end
end
if #reply > 1 then
  call('EXPIRE', 'rq:worker:' .. worker .. ':executions', lease + 600)
  call('HSET', 'rq:worker:' .. worker, 'state', 'busy')
end
return reply
