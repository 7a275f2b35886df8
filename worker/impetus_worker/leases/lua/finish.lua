-- Ends many jobs of one worker in one step, each only while its lease holds (the fence: its execution hash exists).
--
-- ARGV: worker, now (ISO 8601), now (epoch s), now (whole epoch s), name of the field for vectors, the payloads and
--       vectors of all jobs joined, then for each job: id, execution id, queue, verb, bytes of its payload, bytes of
--       its vectors (-1 for none), time to live (s, -1 for ever), started (epoch s)
--   verb: 'finish' with the base64 return value, 'fail' with the base64 reason, 'abort' the same, dependents or
--         not, 'return' puts the job back at the front of its queue as if it had never been claimed
-- Returns one number a job: 1 done, 0 the lease was lost and nothing was written, 2 has dependents: RQ's own path.
local call = redis.call
local worker, now_iso, now, now_s = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local vectors_field, payloads, offset = ARGV[5], ARGV[6], 1
local worker_key, running = 'rq:worker:' .. worker, 'rq:worker:' .. worker .. ':executions'
local DONE, LOST, HAS_DEPENDENTS = 1, 0, 2

-- Commands that take many members, or many keys, are sent once for many jobs.
local batches = {}
local function collect(command, key, ...)
  local name = command .. (key or '')
  local batch = batches[name]
  if not batch then
    batch = {command, key}
    batches[name] = batch
  end
  for i = 1, select('#', ...) do batch[#batch + 1] = select(i, ...) end
  if #batch > 1000 then  -- Lua passes some thousands of arguments, and no more
    call(unpack(batch))
    batches[name] = nil
  end
end

local function send_collected()
  for _, batch in pairs(batches) do call(unpack(batch)) end
end

-- The next so many bytes of what was sent joined.
local function cut(size)
  offset = offset + size
  return string.sub(payloads, offset - size, offset - 1)
end

local function put_back(id, key, queue)
  call('HSET', key, 'status', 'queued', 'started_at', '', 'worker_name', '')
  call('HDEL', key, 'impetus_execution')
  call('LPUSH', 'rq:queue:' .. queue, id)
  local waits = call('HGET', key, 'ttl')
  if waits and tonumber(waits) then call('EXPIRE', key, waits) end
end

local function write_result(results, ok, payload, vectors, execution, started)
  local entry = {'type', ok and 1 or 2, 'worker_name', worker, ok and 'return_value' or 'exc_string', payload,
                 'execution_id', execution, 'execution_started_at', started, 'execution_ended_at', ARGV[3]}
  if vectors then
    entry[#entry + 1] = vectors_field
    entry[#entry + 1] = vectors
  end
  local added = redis.pcall('XADD', results, 'MAXLEN', '10', '*', unpack(entry))
  return not (type(added) == 'table' and added.err)
end

local function end_job(id, key, queue, execution, ok, payload, vectors, ttl, started)
  call('HSET', key, 'status', ok and 'finished' or 'failed', 'ended_at', now_iso, 'last_heartbeat', now_iso)
  call('HDEL', key, 'impetus_execution', 'impetus_alone', 'impetus_suspect', 'impetus_deaths')
  local results = 'rq:results:' .. id
  if not write_result(results, ok, payload, vectors, execution, started) then
    call('DEL', results)  -- it was no stream
    write_result(results, ok, payload, vectors, execution, started)
  end
  if ttl >= 0 then
    call('EXPIRE', results, ttl)
    call('EXPIRE', key, ttl)
  else
    call('PERSIST', results)
  end
  collect('ZADD', (ok and 'rq:finished:' or 'rq:failed:') .. queue, ttl < 0 and '+inf' or now_s + ttl, id)
end

local function how_many_exist(keys)
  local sum = 0
  for from = 1, #keys, 1000 do sum = sum + call('EXISTS', unpack(keys, from, math.min(from + 999, #keys))) end
  return sum
end

-- Asked for all jobs at once, because mostly all leases hold and no job has dependents.
local lease_keys, dependents_keys = {}, {}
for at = 7, #ARGV, 8 do
  lease_keys[#lease_keys + 1] = 'rq:execution:' .. ARGV[at] .. ':' .. ARGV[at + 1]
  dependents_keys[#dependents_keys + 1] = 'rq:job:' .. ARGV[at] .. ':dependents'
end
local all_held = how_many_exist(lease_keys) == #lease_keys
local any_dependents = how_many_exist(dependents_keys) > 0

local reply, finished, failed, worked = {}, 0, 0, 0
for at = 7, #ARGV, 8 do
  local id, execution, queue, verb = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local payload = cut(tonumber(ARGV[at + 4]))
  local vectors = ARGV[at + 5] ~= '-1' and cut(tonumber(ARGV[at + 5]))
  local ttl, started = tonumber(ARGV[at + 6]), ARGV[at + 7]
  local key, composite = 'rq:job:' .. id, id .. ':' .. execution
  local lease_key, runs_key = 'rq:execution:' .. composite, 'rq:executions:' .. id
  local state = redis.pcall('HMGET', key, 'status', 'impetus_execution', 'dependency_ids')
  local outcome = DONE
  if state[1] ~= 'started' or state[2] ~= execution then
    -- Another's, or cancelled or deleted while it ran: of this run nothing is kept.
    collect('DEL', nil, lease_key)
    call('ZREM', runs_key, execution)
    collect('ZREM', 'rq:wip:' .. queue, composite)
    outcome = LOST
  elseif not all_held and call('EXISTS', lease_key) == 0 then
    -- Its lease ran out and nobody has put it back yet: recover.lua finds it by its place in the registry.
    outcome = LOST
  elseif any_dependents and (verb == 'finish' or verb == 'fail') and call('EXISTS', key .. ':dependents') == 1 then
    outcome = HAS_DEPENDENTS
  else
    if verb == 'return' then
      put_back(id, key, queue)
    else
      local ok = verb == 'finish'
      end_job(id, key, queue, execution, ok, payload, vectors, ttl, started)
      if state[3] and ttl >= 0 then call('EXPIRE', 'rq:job::' .. id .. ':dependencies', ttl) end  -- RQ's two colons
      if ok then finished = finished + 1 else failed = failed + 1 end
      worked = worked + now - tonumber(started)
    end
    collect('DEL', nil, lease_key, runs_key)
    collect('ZREM', 'rq:wip:' .. queue, composite)
  end
  -- Whatever became of it, this worker no longer runs it; only a job on RQ's own path stays in its books.
  if outcome ~= HAS_DEPENDENTS then collect('SREM', running, composite) end
  reply[#reply + 1] = outcome
end
send_collected()
-- A hash that expired meanwhile must not come back as a worker of two fields.
if call('EXISTS', worker_key) == 1 then
  if finished > 0 then call('HINCRBY', worker_key, 'successful_job_count', finished) end
  if failed > 0 then call('HINCRBY', worker_key, 'failed_job_count', failed) end
  if worked > 0 then call('HINCRBYFLOAT', worker_key, 'total_working_time', worked) end
  if call('EXISTS', running) == 0 and call('HGET', worker_key, 'state') == 'busy' then
    call('HSET', worker_key, 'state', 'idle')
  end
end
return reply
