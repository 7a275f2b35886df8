-- Renews what a worker says of itself, to RQ and to the other workers, and tells what the others say. Whoever says
-- something new has the others look. The time of its last sign of life is the server's.
--
-- ARGV: worker, time to live of its record (ms), its record ('' says that it takes no more work), time to live of RQ's hash (s), the standby queue, number of
--       queues it listens to, these, number of all it may listen to, these, then the fields and values of RQ's hash
-- Returns the records of the other workers that live.
local worker, ttl_ms, record, hash_ttl, standby = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local key, own = 'rq:worker:' .. worker, RECORD .. worker
local at, queues, may = 6, {}, {}
for i = 1, tonumber(ARGV[at]) do queues[i] = ARGV[at + i] end
at = at + 1 + #queues
for i = 1, tonumber(ARGV[at]) do may[i] = ARGV[at + i] end
at = at + 1 + #may

-- First, because a server out of memory allows this and no SET.
call('PEXPIRE', own, ttl_ms)
call('EXPIRE', key, hash_ttl)
local is_new = (read('GET', own) or '') ~= record
if record == '' then
  call('DEL', own)
elseif is_new then
  call('SET', own, record, 'PX', ttl_ms)
end
if record ~= '' then write('SADD', ROSTER, worker) end

-- Whole, so that it comes back after a server lost it.
local now_iso = iso(server_time())
write('HSET', key, 'last_heartbeat', now_iso, 'queues', table.concat(queues, ','), unpack(ARGV, at))
if call('HSETNX', key, 'birth', now_iso) == 1 then call('HSETNX', key, 'state', 'idle') end
call('HDEL', key, 'death')
call('EXPIRE', key, hash_ttl)
write('SADD', 'rq:workers', key)
local listens = {}
for _, queue in ipairs(queues) do
  listens[queue] = true
  write('SADD', 'rq:workers:' .. queue, key)
end
for _, queue in ipairs(may) do
  if not listens[queue] then write('SREM', 'rq:workers:' .. queue, key) end
end
-- rq lists workers by the queues it lists.
if call('EXISTS', 'rq:workers:' .. standby) == 1 then
  write('SADD', 'rq:queues', 'rq:queue:' .. standby)
elseif call('EXISTS', 'rq:queue:' .. standby) == 0 then
  write('SREM', 'rq:queues', 'rq:queue:' .. standby)
end

local others, names = living_records(worker)
if is_new then
  for _, name in ipairs(names) do ring_at(name) end
end
return others
