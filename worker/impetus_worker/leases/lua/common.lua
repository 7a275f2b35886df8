-- What every script begins with. Times are the server's, and never a worker's. What lies under `impetus:` is the
-- workers' own; everything else others can write, so it is read with care, and a key of the wrong type is replaced.
local call, pcall = redis.call, redis.pcall
local TOKENS, LEASES, DEATHS = 'impetus:tokens:', 'impetus:leases:', 'impetus:deaths:'
local RECORD, CANCEL, ROSTER, STRAYS = 'impetus:worker:', 'impetus:cancel:', 'impetus:workers', 'impetus:strays:'
local MAX_WORKERS = 1000
local MAX_TTL_S = 1000000000

local function server_time()
  local at = call('TIME')
  return tonumber(at[1]), tonumber(at[2])
end

-- A time as RQ writes it. The date of a day: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
local function iso(seconds, micros)
  local day_number = math.floor(seconds / 86400)
  local rest, z = seconds - day_number * 86400, day_number + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day, month = doy - math.floor((153 * mp + 2) / 5) + 1, mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day, math.floor(rest / 3600),
                       math.floor(rest / 60) % 60, rest % 60, micros)
end

-- Decimal digits as a number, at most `most`; nil for anything else. tonumber takes '1e3', 'nan' and '0x10' too.
local function whole(text, most)
  if type(text) ~= 'string' or not string.find(text, '^%d+$') then return nil end
  return #text <= 15 and math.min(tonumber(text), most) or most
end

-- Whether it is this caller's turn, which the others then leave alone for so long (ms). A turn that lasts for ever, or
-- longer than any, as after the server's clock was set back, is nobody's.
local function takes_turn(key, ms)
  local left = call('PTTL', key)
  if left == -1 or left > tonumber(ms) then call('DEL', key) end
  return call('SET', key, 1, 'NX', 'PX', ms)
end

-- What a read gives, or nil where the key is of another type.
local function read(command, key, ...)
  local answer = pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then return nil end
  return answer
end

-- The next part of what is scanned, whoever of the workers scanned the last.
local function scan_on(turn, command, key, ...)
  local words = {command, unpack(key)}
  words[#words + 1] = read('GET', turn .. ':at') or '0'
  for _, word in ipairs({...}) do words[#words + 1] = word end
  local scanned = read(unpack(words)) or {'0', {}}
  call('SET', turn .. ':at', scanned[1], 'EX', 86400)
  return scanned[2]
end

-- A write to a key that others can write too. One of another type, or a stream whose ids are used up, is in nobody's
-- use, and is replaced.
local function write(command, key, ...)
  local answer = pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then
    if string.find(answer.err, 'WRONGTYPE', 1, true) or string.find(answer.err, 'last possible ID', 1, true) then
      call('DEL', key)
    end
    return call(command, key, ...)  -- which raises what the server says, by its own code
  end
  return answer
end

-- Counts on in a hash that others can write too. What is no number there, or has no room to grow, begins anew.
local function count_on(command, key, field, by)
  local answer = pcall(command, key, field, by)
  if type(answer) == 'table' and answer.err then write('HSET', key, field, by) end
end

-- Rings at a worker, so that it looks at the others at once. It looks by itself too, so who may not publish does not.
local function ring_at(worker) pcall('PUBLISH', 'rq:pubsub:' .. worker, '{"command": "impetus-look"}') end

-- Commands that take many members are sent once for many jobs, and in parts: Lua passes some thousands and no more.
local function in_parts(members, size, send)
  for from = 1, #members, size do send(unpack(members, from, math.min(from + size - 1, #members))) end
end

local collected = {}
local function collect(command, key, one, two)
  local keys = collected[command]
  if not keys then
    keys = {}
    collected[command] = keys
  end
  local batch = keys[key]
  if not batch then
    batch = {}
    keys[key] = batch
  end
  batch[#batch + 1] = one
  if two then batch[#batch + 1] = two end
end

local function send_collected()
  for command, keys in pairs(collected) do
    for key, batch in pairs(keys) do
      in_parts(batch, 1000, function(...) write(command, key, ...) end)
    end
  end
  collected = {}
end

-- The values that a hash of ours has for these fields, false where it has none.
local function values_of(key, fields)
  local values = {}
  in_parts(fields, 1000, function(...)
    for _, value in ipairs(read('HMGET', key, ...) or {}) do values[#values + 1] = value end
  end)
  return values
end

-- Which run of the job is the one that counts: its token and the worker that has it, or nil.
local function split(held)
  if not held then return nil end
  return string.match(held, '^(%S+) (%S+)$')
end

local function executions_of(worker) return 'rq:worker:' .. worker .. ':executions' end

-- A worker that runs nothing more is idle. One whose record ran out must not come back as a hash of one field.
local function show_idle(worker)
  local key = 'rq:worker:' .. worker
  if call('EXISTS', executions_of(worker)) == 0 and read('HGET', key, 'state') == 'busy' then
    call('HSET', key, 'state', 'idle')
  end
end

-- What the workers say of themselves that are in RQ's books and live, this one aside, and their names. A record without
-- an end is nobody's who lives. They are found by a list of our own: anybody may name a million in RQ's.
local function living_records(worker)
  local records, names, gone = {}, {}, {}
  local many = (read('SCARD', ROSTER) or 0) > MAX_WORKERS
  local roster = many and read('SRANDMEMBER', ROSTER, MAX_WORKERS) or read('SMEMBERS', ROSTER)
  for _, name in ipairs(roster or {}) do
    local said = name ~= worker and read('GET', RECORD .. name)
    if said and call('PTTL', RECORD .. name) > 0 and read('SISMEMBER', 'rq:workers', 'rq:worker:' .. name) == 1 then
      records[#records + 1], names[#names + 1] = said, name
    elseif not said and name ~= worker then
      gone[#gone + 1] = name
    end
  end
  in_parts(gone, 1000, function(...) call('SREM', ROSTER, ...) end)
  return records, names
end

-- Takes a run out of all books; send_collected() writes it.
local function end_run(queue, id, token, worker)
  collect('HDEL', TOKENS .. queue, id)
  collect('ZREM', LEASES .. queue, id)
  if not token then return end
  local run = id .. ':' .. token
  collect('ZREM', 'rq:wip:' .. queue, run)
  collect('SREM', executions_of(worker), run)
end

-- RQ's keys of one run, which only jobs under a rate limit have: by them RQ knows that a job which was cancelled while
-- it runs holds its place yet.
local function executions_keys(id, token) return 'rq:executions:' .. id, 'rq:execution:' .. id .. ':' .. (token or '') end

-- Whether a job is where its status says. Whoever saves an old copy of a job writes the status that it had, so where a job
-- is found tells what it is at, and its status does not. Of a queue the ends are looked at: what lies between, of an ended
-- job, claims pass over.
local OVER = {canceled = true, finished = true, failed = true, stopped = true}
local REGISTRY = {finished = 'rq:finished:', failed = 'rq:failed:', stopped = 'rq:failed:', scheduled = 'rq:scheduled:',
                  deferred = 'rq:deferred:', ready_to_enqueue = 'rq:ready:'}
local LOOK_AT = 10000
local function is_where_it_says(queue, id, status)
  if status == 'canceled' then return true end
  if status == 'started' then
    return read('HEXISTS', TOKENS .. queue, id) == 1 or read('EXISTS', 'rq:executions:' .. id) == 1
  elseif status == 'queued' then
    local list = 'rq:queue:' .. queue
    return read('LPOS', list, id, 'RANK', -1, 'MAXLEN', LOOK_AT) or read('LPOS', list, id, 'MAXLEN', LOOK_AT)
  elseif status == 'rate_limited' then
    local limit = read('HGET', 'rq:job:' .. id, 'rate_limit_key')
    return limit and read('ZSCORE', 'rq:rl:' .. limit .. ':rate_limited', id)
  end
  return REGISTRY[status] and read('ZSCORE', REGISTRY[status] .. queue, id)
end

-- Whether a run whose token stands, or that nobody has a token of, is what the job is at. One that has ended, or waits
-- once more as by RQ's requeue, is another's.
local function is_at_it(queue, id)
  local status = read('HGET', 'rq:job:' .. id, 'status')
  return status and (status == 'started' or not is_where_it_says(queue, id, status))
end

-- Puts a job that was started at the front of its queue, as if it had never been claimed.
local function put_back(queue, id, token)
  local key = 'rq:job:' .. id
  call('HSET', key, 'status', 'queued', 'started_at', '', 'worker_name', '')
  call('DEL', executions_keys(id, token))
  write('LPUSH', 'rq:queue:' .. queue, id)
  local ttl = whole(call('HGET', key, 'ttl'), MAX_TTL_S)
  if ttl and ttl > 0 then call('EXPIRE', key, ttl) end
end

-- Ends runs whose workers are gone, and puts back what still was to run: in the order of the tokens, which is that of
-- the claims. `held` has for each id what the tokens say. Returns the ids that are back on the queue.
local function give_back(queue, ids, held)
  local back, workers, order = {}, {}, {}
  for at = 1, #ids do order[at] = at end
  table.sort(order, function(one, two) return (held[one] or '') < (held[two] or '') end)
  for place = #order, 1, -1 do
    local at = order[place]
    local id = ids[at]
    local token, worker = split(held[at])
    end_run(queue, id, token, worker)
    if worker then workers[worker] = true end
    if is_at_it(queue, id) then
      put_back(queue, id, token)
      table.insert(back, 1, id)
    end
  end
  send_collected()
  for worker in pairs(workers) do show_idle(worker) end
  return back
end
