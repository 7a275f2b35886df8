-- Finds jobs that wait or run by their status and lie nowhere, because the server dropped the list of their queue
-- (eviction) or somebody deleted it: a part of all keys a call. One that lies nowhere for so long goes back to the front;
-- a worker of RQ's takes a job off its queue some time before it says that it started.
--
-- ARGV: how long the others leave it alone then (ms), how long a job lies nowhere (s), the queues
-- Returns the ids put back.
local PART, MOST, SHORT = 250, 250, 1000
local turn = 'impetus:recovery:strays:' .. ARGV[3]
if not takes_turn(turn, ARGV[1]) then return {} end

-- Of the queues that are short enough to look through: what lies on each, asked when it is needed.
local short, on, seconds = {}, {}, server_time()
for at = 3, #ARGV do
  local queue = ARGV[at]
  short[queue] = (read('LLEN', 'rq:queue:' .. queue) or 0) <= SHORT or nil
end
if not next(short) then return {} end

local function is_on(queue, id)
  if not on[queue] then
    on[queue] = {}
    for _, list in ipairs({'', ':intermediate'}) do
      for _, each in ipairs(read('LRANGE', 'rq:queue:' .. queue .. list, 0, SHORT) or {}) do on[queue][each] = true end
    end
  end
  return on[queue][id]
end

-- Of a worker that is one of ours, or is gone.
local function may_be_ours(id, worker)
  if read('EXISTS', 'rq:executions:' .. id) == 1 then return false end
  return read('SISMEMBER', ROSTER, worker or '') == 1 or read('EXISTS', 'rq:worker:' .. (worker or '')) == 0
end

local function is_in_a_registry(queue, id)
  for _, registry in pairs(REGISTRY) do
    if read('ZSCORE', registry .. queue, id) then return true end
  end
  return read('ZSCORE', 'rq:canceled:' .. queue, id) or read('ZSCORE', 'rq:wip:' .. queue, id)
end

-- Its queue, of a job that lies nowhere.
local function strays_from(key, id)
  local status = read('HGET', key, 'status')
  if status ~= 'queued' and status ~= 'started' then return nil end
  local queue = read('HGET', key, 'origin')
  if not queue or not short[queue] or is_on(queue, id) or read('HEXISTS', TOKENS .. queue, id) == 1 then return nil end
  if status == 'started' and not may_be_ours(id, read('HGET', key, 'worker_name')) then return nil end
  return not is_in_a_registry(queue, id) and queue
end

for _, key in ipairs(scan_on(turn, 'SCAN', {}, 'MATCH', 'rq:job:*', 'COUNT', PART)) do
  local id = string.sub(key, #'rq:job:' + 1)
  local queue = string.find(id, '^[%w_%-]+$') and strays_from(key, id)
  if queue then write('ZADD', STRAYS .. queue, 'NX', seconds, id) end
end

local back = {}
for queue in pairs(short) do
  local due = read('ZRANGEBYSCORE', STRAYS .. queue, '-inf', seconds - ARGV[2], 'LIMIT', 0, MOST) or {}
  for _, id in ipairs(due) do
    if strays_from('rq:job:' .. id, id) == queue then
      put_back(queue, id)
      back[#back + 1] = id
    end
    collect('ZREM', STRAYS .. queue, id)
  end
end
send_collected()
return back
