-- Renews what a worker says of itself, and tells what the others say. Whoever says something new rings at the others.
--
-- ARGV: worker, time to live (ms), record
-- Returns the records of the other workers that live.
local own, ttl, record = 'impetus:worker:' .. ARGV[1], ARGV[2], ARGV[3]
-- First, because a server out of memory allows this and no SET.
redis.call('PEXPIRE', own, ttl)
local is_new = redis.call('GET', own) ~= record
if is_new then redis.call('SET', own, record, 'PX', ttl) end
local others = {}
for _, key in ipairs(redis.call('SMEMBERS', 'rq:workers')) do
  local name = string.sub(key, #'rq:worker:' + 1)
  local said = name ~= ARGV[1] and redis.pcall('GET', 'impetus:worker:' .. name)
  if type(said) == 'string' then
    others[#others + 1] = said
    if is_new then redis.call('PUBLISH', 'rq:pubsub:' .. name, '{"command": "impetus-look"}') end
  end
end
return others
