-- Finds jobs that wait or run by their status and lie nowhere, because the server dropped the list of their queue
-- (eviction) or somebody deleted it: a part of all keys a call. One that lies nowhere for so long goes back to the front;
-- a worker of RQ's takes a job off its queue some time before it says that it started.
--
-- ARGV: how long the others leave it alone then (ms), how long a job lies nowhere (s), the queues
-- Returns the ids put back, and those of scheduled jobs whose registry was dropped, and with it their time.
local PART, MOST, SHORT = 250, 250, 1000
local turn = 'impetus:recovery:strays:' .. ARGV[3]
if not takes_turn(turn, ARGV[1]) then return {{}, {}} end

-- Of the queues that are short enough to look through, and of all what lies on each, asked when it is needed.
local short, on, seconds = {}, {}, server_time()
for at = 3, #ARGV do
  local queue = ARGV[at]
  short[queue] = (read('LLEN', 'rq:queue:' .. queue) or 0) <= SHORT or nil
end
if not next(short) then return {{}, {}} end

local function is_on(queue, id)
  if not on[queue] then
    on[queue] = {}
    local list = 'rq:queue:' .. queue
    local function note(...)
      for _, each in ipairs(read('LRANGE', ...) or {}) do on[queue][each] = true end
    end
    note(list, 0, LOOK_AT - 1)
    if not short[queue] then note(list, -LOOK_AT, -1) end
    note(list .. ':intermediate', 0, SHORT)
  end
  return on[queue][id]
end

-- Its queue, of a job that is not where it says. One of a stock worker that lives is that worker's.
local function strays_from(key, id)
  local status = read('HGET', key, 'status')
  if status ~= 'queued' and status ~= 'started' then return nil end
  local queue = read('HGET', key, 'origin')
  if not queue or not short[queue] or is_on(queue, id) or read('HEXISTS', TOKENS .. queue, id) == 1 then return nil end
  if status == 'queued' then return queue end
  local worker = read('HGET', key, 'worker_name') or ''
  return (read('SISMEMBER', ROSTER, worker) == 1 or read('EXISTS', 'rq:worker:' .. worker) == 0) and queue
end

-- Whether it lies anywhere else: its status may be an old one that somebody saved, and its queue one that it left.
local function is_elsewhere(id)
  if read('EXISTS', 'rq:executions:' .. id) == 1 or is_where_it_says(nil, id, 'rate_limited') then return true end
  for at = 3, #ARGV do
    local queue = ARGV[at]
    if is_on(queue, id) or read('HEXISTS', TOKENS .. queue, id) == 1 then return true end
    for _, registry in pairs(REGISTRY) do
      if read('ZSCORE', registry .. queue, id) then return true end
    end
    if read('ZSCORE', 'rq:canceled:' .. queue, id) or read('ZSCORE', 'rq:wip:' .. queue, id) then return true end
  end
  return false
end

-- Whoever schedules a job or enqueues it writes both in one step, but for RQ, when it tries one again.
local function has_no_time(key, id)
  if read('HGET', key, 'status') ~= 'scheduled' then return false end
  local queue = read('HGET', key, 'origin')
  return queue and short[queue] and not read('ZSCORE', 'rq:scheduled:' .. queue, id)
end

local timeless = {}
for _, key in ipairs(scan_on(turn, 'SCAN', {}, 'MATCH', 'rq:job:*', 'COUNT', PART)) do
  local id = string.sub(key, #'rq:job:' + 1)
  if string.find(id, '^[%w_%-]+$') then
    local queue = strays_from(key, id)
    if queue then write('ZADD', STRAYS .. queue, 'NX', seconds, id) end
    if has_no_time(key, id) then timeless[#timeless + 1] = id end
  end
end

local back = {}
for queue in pairs(short) do
  local due = read('ZRANGEBYSCORE', STRAYS .. queue, '-inf', seconds - ARGV[2], 'LIMIT', 0, MOST) or {}
  for _, id in ipairs(due) do
    if strays_from('rq:job:' .. id, id) == queue and not is_elsewhere(id) then
      put_back(queue, id)
      back[#back + 1] = id
    end
    collect('ZREM', STRAYS .. queue, id)
  end
end
send_collected()
return {back, timeless}
