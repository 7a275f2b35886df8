-- Takes up to max_jobs jobs off the queues, in the queues' order, and writes all that is kept of a started job.
-- One step, and the queue last: whatever ends it in the middle, no job is lost.
--
-- KEYS: the queues' lists
-- ARGV: worker, lease (s), how much longer RQ's registry waits (s), max jobs, max bytes, prefix of tokens, then the
--       queues' names in the order of KEYS, then four numbers for each: a portion (`portions.py`)
-- Returns {1: suspended | 0, now (epoch s), {of each queue, how many wait, how many wait or run, whether
--          those that wait are for others (1|0), the first of these, ...},
--          {job id, token, queue's position, {field, value, ...} as they were, deaths, of these alone, cancelled (1|0)},
--          ...}
local worker, lease, margin = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_jobs, max_bytes, prefix = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local MAX_ID, MAX_FIELDS, MAX_HASH_BYTES = 255, 100, 80000000
local MAX_LOOKED_AT = 1024  -- ids of jobs that are gone cost time too
local seconds, micros = server_time()
local reply = {0, string.format('%d.%06d', seconds, micros), {}}
if call('EXISTS', 'rq:suspended') == 1 then
  reply[1] = 1
  return reply
end
-- As text, because a number is written out anew each time that a command is given it.
local now_iso, score = iso(seconds, micros), string.format('%d', seconds + lease + margin)
local lease_end = string.format('%.6f', seconds + micros / 1000000 + lease)

local bytes, looked_at, count = 0, 0, 0
local executions = executions_of(worker)
local taken = {}  -- by this claim, which may meet an id again before the tokens say so

-- RQ's keys join ids with a colon, so an id that holds one would spoil the registries.
local function fail(id, key, queue)
  call('HSET', key, 'status', 'failed')
  -- RQ reads a registry's ids as UTF-8, all of them or none.
  if #id <= MAX_ID and not string.find(id, '[\128-\255]') then write('ZADD', 'rq:failed:' .. queue, score, id) end
end

local function start(id, key, queue, token, rate_limited, ran_before)
  local run = id .. ':' .. token
  call('HSET', key, 'status', 'started', 'started_at', now_iso, 'last_heartbeat', now_iso, 'worker_name', worker)
  call('PERSIST', key)  -- it may have a time to live from an earlier ending, or from while it waited
  collect('HSET', TOKENS .. queue, id, token .. ' ' .. worker)
  collect('ZADD', LEASES .. queue, lease_end, id)
  collect('ZADD', 'rq:wip:' .. queue, score, run)
  collect('SADD', executions, run)
  if ran_before then  -- else its earlier ending would be taken for that of this run
    for _, registry in ipairs({'finished', 'failed'}) do collect('ZREM', REGISTRY[registry] .. queue, id) end
  end
  if rate_limited then
    local runs, run_key = executions_keys(id, token)
    write('HSET', run_key, 'id', token, 'job_id', id, 'created_at', seconds, 'last_heartbeat', seconds, 'worker_name', worker)
    write('ZADD', runs, score, token)
    call('EXPIRE', run_key, lease + margin)
    call('EXPIRE', runs, lease + margin)
  end
end

-- All fields of a job; of one that has more than any job has, or longer ones, those by which it can be failed.
local function fields_of(key, length)
  -- Who may not ask for it reads whatever there is.
  local size = length <= MAX_FIELDS and pcall('MEMORY', 'USAGE', key, 'SAMPLES', 0)
  if size and not (type(size) == 'number' and size > MAX_HASH_BYTES) then return call('HGETALL', key) end
  local fields = {'impetus_too_large', '1'}
  for _, name in ipairs({'status', 'origin', 'timeout', 'failure_ttl', 'rate_limit_key'}) do
    if call('HSTRLEN', key, name) < 100 then
      local value = call('HGET', key, name)
      if value then
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
    end
  end
  return fields
end

-- Looks at one id of a queue; `held` is what the tokens say of it.
local function take(id, queue, position, held, deaths)
  local key = 'rq:job:' .. id
  local length = read('HLEN', key)
  if not length or length == 0 then return end
  local fields, status, rate_limited, ran_before = fields_of(key, length), nil, false, false
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    bytes = bytes + #value
    if name == 'status' then status = value
    elseif name == 'rate_limit_key' then rate_limited = true
    elseif name == 'ended_at' then ran_before = value ~= '' end
  end
  if #id > MAX_ID or not string.find(id, '^[%w_%-]+$') then return fail(id, key, queue) end
  -- Its id was in the queue twice, as after an enqueueing that was sent again: it ran, and RQ's requeue takes it from
  -- where it lies. Enqueued twice and running now: the run under way is the one that counts.
  if OVER[status] and is_where_it_says(queue, id, status) then return end
  if (held or taken[id]) and status == 'started' then return end
  if held then end_run(queue, id, split(held)) send_collected() end  -- enqueued again: that run is over
  count, taken[id] = count + 1, true
  local token = string.format('%s%04x', prefix, count)  -- in the order of the claim
  start(id, key, queue, token, rate_limited, ran_before)
  local alone = deaths and read('HGET', DEATHS .. queue, id .. ':alone')
  reply[#reply + 1] = {id, token, position, fields, deaths or '', alone or '', 0}
end

local function running(queue) return read('ZCARD', 'rq:wip:' .. queue) or 0 end

-- How many jobs of a queue are this worker's to take.
local NEARLY = 0.75  -- who is hardly slower than the best is as good
local function portion(queue_key, queue, position)
  local at = 6 + #KEYS + 4 * (position - 1)
  local own, best, held, least = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if own >= 1 then return max_jobs end
  local left = math.max((read('LLEN', queue_key) or 0) + running(queue), held)
  local half = math.max(math.ceil(own * left / 2), least) - held
  -- How many it can end while the others do the rest, and the best of them one more.
  local one_more = own / best
  if one_more > NEARLY then one_more = math.max(1, one_more) end
  local sooner_here = (left - held) * own / (1 - own) + one_more - held
  return math.max(0, math.min(half, math.floor(sooner_here)))
end

-- A hash of a few hundred short values is searched from its beginning for each of them; one long value makes a table of
-- it, which it stays until it is empty.
local MANY, LONG = 16, string.rep('-', 100)
local function send_started(queue)
  local many = count >= MANY
  if many then write('HSET', TOKENS .. queue, '', LONG) end
  send_collected()
  if many then write('HDEL', TOKENS .. queue, '') end
end

local function claim_from(queue_key, queue, position)
  local passed, all_looked_at = 0, false
  local mine = math.min(max_jobs, count + portion(queue_key, queue, position))
  while not all_looked_at and count < mine and bytes < max_bytes and looked_at < MAX_LOOKED_AT do
    local part = math.min(256, mine - count)
    local ids = read('LRANGE', queue_key, passed, passed + part - 1) or {}
    if #ids == 0 then break end
    all_looked_at = #ids < part
    local held = values_of(TOKENS .. queue, ids)
    local deaths = call('EXISTS', DEATHS .. queue) == 1 and values_of(DEATHS .. queue, ids) or {}
    for at, id in ipairs(ids) do
      if bytes >= max_bytes then break end
      passed, looked_at = passed + 1, looked_at + 1
      take(id, queue, position, held[at], deaths[at])
    end
  end
  send_started(queue)
  if passed > 0 then call('LTRIM', queue_key, passed, -1) end
  return count >= mine and mine < max_jobs
end

for position, queue_key in ipairs(KEYS) do
  local queue = ARGV[6 + position]
  local for_others = claim_from(queue_key, queue, position)
  local waiting, left = read('LLEN', queue_key) or 0, reply[3]
  left[#left + 1] = waiting
  left[#left + 1] = waiting + running(queue)
  left[#left + 1] = (for_others and waiting > 0) and 1 or 0
  left[#left + 1] = read('LINDEX', queue_key, 0) or ''
end
if count > 0 then
  call('EXPIRE', executions_of(worker), lease + 600)
  local worker_key, wishes = 'rq:worker:' .. worker, {}
  if read('HEXISTS', worker_key, 'birth') == 1 then call('HSET', worker_key, 'state', 'busy') end
  for at = 4, #reply do wishes[#wishes + 1] = CANCEL .. reply[at][1] end
  local at = 4
  in_parts(wishes, 1000, function(...)
    for _, wish in ipairs(call('MGET', ...)) do
      if wish then reply[at][7] = 1 end
      at = at + 1
    end
  end)
end
return reply
