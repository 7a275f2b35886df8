-- What a supervisor says of a worker process that it saw end: its runs are over, its jobs go back to the front, and
-- those that had begun in its engine have met a death. Counted once, however often it is said.
--
-- ARGV: worker, number of its queues, these, number of ids that had begun, these
-- Returns the ids put back.
local worker, queues, begun, count = ARGV[1], {}, {}, 0
local at = 2
for i = 1, tonumber(ARGV[at]) do queues[i] = ARGV[at + i] end
at = at + 1 + #queues
count = tonumber(ARGV[at])
for i = 1, count do begun[ARGV[at + i]] = true end

local back = {}
for _, queue in ipairs(queues) do
  local ids, held = {}, {}
  local all = read('HGETALL', TOKENS .. queue) or {}
  for i = 1, #all, 2 do
    local _, owner = split(all[i + 1])
    if owner == worker then ids[#ids + 1], held[#held + 1] = all[i], all[i + 1] end
  end
  for _, id in ipairs(ids) do
    if begun[id] then
      count_on('HINCRBY', DEATHS .. queue, id, 1)
      if count == 1 then count_on('HINCRBY', DEATHS .. queue, id .. ':alone', 1) end
    end
  end
  for _, id in ipairs(give_back(queue, ids, held)) do back[#back + 1] = id end
end
local key, record = 'rq:worker:' .. worker, RECORD .. worker
write('SREM', 'rq:workers', key)
write('SREM', ROSTER, worker)
for queue in string.gmatch(read('HGET', key, 'queues') or '', '[^,]+') do write('SREM', 'rq:workers:' .. queue, key) end
local said = call('DEL', record)
call('DEL', key, executions_of(worker))
if said == 1 then
  local _, others = living_records(worker)
  for _, other in ipairs(others) do ring_at(other) end
end
return back
