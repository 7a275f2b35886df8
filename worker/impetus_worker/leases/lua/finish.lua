-- Ends many runs of one worker in one step, each only while its token stands: the fence. A lease that ran out does not
-- matter as long as nobody has put the job back.
--
-- ARGV: worker, seconds that it worked since it last said so, then for each run: job id, token, queue, verb, payload,
--       name of the field for its vectors ('' has none), vectors, time to live (s, -1 for ever, 0 keeps nothing),
--       started (epoch s), whether it waited for other jobs (1|'')
--   verb: 'finish' with the base64 return value, 'fail' or 'stop' with the base64 reason, 'complete' finishes and 'abort'
--         fails it whatever it has of dependents, 'return' puts the job back at the front of its queue as if it had never been claimed
-- Returns one number a run: 1 done, 0 it was not this worker's any more and nothing is written, 2 RQ has more to do.
local worker, worked, FIRST, EACH = ARGV[1], tonumber(ARGV[2]), 3, 10
local DONE, LOST, RQS = 1, 0, 2
local MAX_DEPENDENTS, MAX_LOOKS = 100, 20000
local ending = {}  -- what has become of jobs by this call
local seconds, micros = server_time()
local now_iso, now = iso(seconds, micros), string.format('%d.%06d', seconds, micros)
local STATUS = {finish = 'finished', complete = 'finished', fail = 'failed', abort = 'failed', stop = 'stopped'}

-- The jobs that wait for this one and can run once it has ended so: {id, queue, at front, ttl} each, and whether others
-- are left. nil where RQ must see to it.
-- Asked once for each key, however many of these runs' dependents depend on the same jobs; nil for more than enough.
local looks, seen = 0, {}
local function look(command, key, ...)
  local name = command .. key
  if seen[name] == nil then
    looks = looks + 1
    if looks > MAX_LOOKS then return nil end
    seen[name] = read(command, key, ...) or false
  end
  return seen[name]
end

local function dependents_of(id, verb)
  local ready, left = {}, false
  local key = 'rq:job:' .. id .. ':dependents'
  if (read('SCARD', key) or 0) > MAX_DEPENDENTS then return nil end
  local ids = read('SMEMBERS', key) or {}
  for _, dependent in ipairs(ids) do
    local job = look('HMGET', 'rq:job:' .. dependent, 'status', 'origin', 'allow_dependency_failures', 'enqueue_at_front',
                     'ttl', 'rate_limit_key')
    if job == nil then return nil end
    local status = job and job[1]
    local failures_allowed = job and (job[3] == '1' or job[3] == 'True')
    local met = status and status ~= 'canceled' and (verb == 'finish' or failures_allowed)
    if met then
      local dependencies = 'rq:job::' .. dependent .. ':dependencies'  -- RQ's two colons
      if (look('SCARD', dependencies) or 0) > MAX_DEPENDENTS then return nil end
      for _, other in ipairs(look('SMEMBERS', dependencies) or {}) do
        local ended = other ~= id and (ending[other] or look('HGET', 'rq:job:' .. other, 'status'))
        if ended == nil then return nil end
        if ended and ended ~= 'finished' and not (failures_allowed and ended == 'failed') then met = false break end
      end
    end
    if not met then
      left = true
    elseif status ~= 'deferred' or job[6] or not job[2] then
      return nil
    else
      ready[#ready + 1] = {id = dependent, queue = job[2], at_front = job[4] == '1', ttl = whole(job[5], MAX_TTL_S)}
    end
  end
  return ready, left
end

local function enqueue_dependents(id, ready, left, ttl)
  for _, job in ipairs(ready) do
    local key = 'rq:job:' .. job.id
    call('HSET', key, 'status', 'queued', 'enqueued_at', now_iso)
    if job.ttl and job.ttl > 0 then call('EXPIRE', key, job.ttl) end
    write('ZREM', 'rq:deferred:' .. job.queue, job.id)
    write('SADD', 'rq:queues', 'rq:queue:' .. job.queue)
    write(job.at_front and 'LPUSH' or 'RPUSH', 'rq:queue:' .. job.queue, job.id)
    write('SREM', 'rq:job:' .. id .. ':dependents', job.id)
    seen['HMGET' .. key] = nil
  end
  if left and ttl >= 0 then call('EXPIRE', 'rq:job:' .. id .. ':dependents', ttl) end
end

-- For how long, and until when, as text: a number is written out anew each time that a command is given it.
local NOTHING, kept = {}, {}
local function kept_for(ttl)
  if not kept[ttl] then
    local ends = string.format('%d', seconds + ttl)
    kept[ttl] = {score = ttl < 0 and '+inf' or ends, ends_ms = string.format('%s%03d', ends, micros / 1000)}
  end
  return kept[ttl]
end

local function end_job(id, queue, token, verb, payload, vectors_field, vectors, ttl, started)
  local key, results = 'rq:job:' .. id, 'rq:results:' .. id
  if ttl == 0 and verb == 'finish' then
    call('DEL', key, results, 'rq:job::' .. id .. ':dependencies')
    return
  end
  local ok = STATUS[verb] == 'finished'
  call('HSET', key, 'status', STATUS[verb], 'ended_at', now_iso)
  write('XADD', results, 'MAXLEN', '10', '*', 'type', ok and '1' or '2', 'worker_name', worker,
        ok and 'return_value' or 'exc_string', payload, 'execution_id', token, 'execution_started_at', started,
        'execution_ended_at', now, unpack(vectors_field == '' and NOTHING or {vectors_field, vectors}))
  local keeping = kept_for(ttl)
  if ttl >= 0 then
    call('PEXPIREAT', results, keeping.ends_ms)  -- as the server writes it down: EXPIRE it writes anew
    call('PEXPIREAT', key, keeping.ends_ms)
  else
    call('PERSIST', results)
  end
  collect('ZADD', (ok and 'rq:finished:' or 'rq:failed:') .. queue, keeping.score, id)
end

-- Asked for all runs at once, because mostly all tokens stand and no job has dependents.
local by_queue, held, wishes = {}, {}, {}
local any_dependents = false
do
  local keys = {}
  for at = FIRST, #ARGV, EACH do
    local queue = ARGV[at + 2]
    by_queue[queue] = by_queue[queue] or {}
    table.insert(by_queue[queue], ARGV[at])
    keys[#keys + 1] = 'rq:job:' .. ARGV[at] .. ':dependents'
  end
  in_parts(keys, 1000, function(...) any_dependents = call('EXISTS', ...) > 0 or any_dependents end)
  for queue, ids in pairs(by_queue) do
    held[queue] = {next = 1, values = values_of(TOKENS .. queue, ids), deaths = call('EXISTS', DEATHS .. queue) == 1}
  end
end

local reply, finished, failed = {}, 0, 0
for at = FIRST, #ARGV, EACH do
  local id, token, queue, verb = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local payload, vectors_field, vectors = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
  local ttl, started, waited_for_others = tonumber(ARGV[at + 7]), ARGV[at + 8], ARGV[at + 9]
  local tokens = held[queue]
  local held_now = tokens.values[tokens.next]
  local stands = held_now == token .. ' ' .. worker
  tokens.next = tokens.next + 1
  local outcome, ready, left = DONE, {}, false
  if not (stands and is_at_it(queue, id)) then
    outcome = LOST  -- another's, or cancelled or deleted while it ran: of this run nothing is kept
  elseif any_dependents and (verb == 'finish' or verb == 'fail') then
    ready, left = dependents_of(id, verb)
    if not ready then outcome = RQS end
  end
  if outcome == DONE then
    if verb == 'return' then
      put_back(queue, id, token)
    else
      if verb == 'abort' or verb == 'complete' then call('DEL', executions_keys(id, token)) end
      end_job(id, queue, token, verb, payload, vectors_field, vectors, ttl, started)
      ending[id] = STATUS[verb]
      if any_dependents then enqueue_dependents(id, ready, left, ttl) end
      if waited_for_others == '1' and ttl > 0 then call('EXPIRE', 'rq:job::' .. id .. ':dependencies', ttl) end
      if STATUS[verb] == 'finished' then finished = finished + 1 else failed = failed + 1 end
      if tokens.deaths then collect('HDEL', DEATHS .. queue, id, id .. ':alone') end
      wishes[#wishes + 1] = CANCEL .. id
    end
  end
  -- Whatever became of it, this worker no longer runs it; only a job on RQ's own path stays in its books.
  if outcome ~= RQS then
    if stands then
      end_run(queue, id, token, worker)
    else
      -- Where no token stands at all the trace stays: by it the sweep finds a job whose token was evicted.
      if held_now then collect('ZREM', 'rq:wip:' .. queue, id .. ':' .. token) end
      collect('SREM', executions_of(worker), id .. ':' .. token)
    end
  end
  reply[#reply + 1] = outcome
end
send_collected()
in_parts(wishes, 1000, function(...) call('DEL', ...) end)
-- A hash that expired meanwhile must not come back as a worker of two fields.
local worker_key = 'rq:worker:' .. worker
if read('HEXISTS', worker_key, 'birth') == 1 then
  if finished > 0 then count_on('HINCRBY', worker_key, 'successful_job_count', finished) end
  if failed > 0 then count_on('HINCRBY', worker_key, 'failed_job_count', failed) end
  if worked > 0 then count_on('HINCRBYFLOAT', worker_key, 'total_working_time', worked) end
  show_idle(worker)
end
return reply
