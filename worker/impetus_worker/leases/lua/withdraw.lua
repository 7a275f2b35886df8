-- Takes a worker that leaves out of all books, and has the others look: what it served is theirs.
--
-- ARGV: worker, the queues it may be listed under
local worker, key = ARGV[1], 'rq:worker:' .. ARGV[1]
local said = call('DEL', RECORD .. worker)
write('SREM', 'rq:workers', key)
write('SREM', ROSTER, worker)
for at = 2, #ARGV do write('SREM', 'rq:workers:' .. ARGV[at], key) end
if read('HEXISTS', key, 'birth') == 1 then
  call('HSET', key, 'death', iso(server_time()))
  call('EXPIRE', key, 60)  -- as long as RQ keeps it
end
call('DEL', executions_of(worker))
if said == 1 then
  local _, others = living_records(worker)
  for _, other in ipairs(others) do ring_at(other) end
end
