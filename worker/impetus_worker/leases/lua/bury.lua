-- What a supervisor says of a worker process that it saw end: its runs are over, its jobs go back to the front, and
-- those that had begun in its engine have met a death. Counted once, however often it is said.
-- Costs what it held, and not what is in flight: its runs are found by the list that RQ has of them, and by what had
-- begun. Whoever deletes that list has the leases of the others run out.
--
-- ARGV: worker, number of its queues, these, number of ids that had begun, these
-- Returns {the ids put back, how many it holds yet}.
local worker, queues, begun, count = ARGV[1], {}, {}, 0
local MOST, MAX_HELD = 100, 20000  -- a call
local at = 2
for i = 1, tonumber(ARGV[at]) do queues[i] = ARGV[at + i] end
at = at + 1 + #queues
count = tonumber(ARGV[at])

local ids, noted = {}, {}
local function note(id)
  if id and not noted[id] then ids[#ids + 1], noted[id] = id, true end
end
for i = 1, count do
  begun[ARGV[at + i]] = true
  note(ARGV[at + i])
end
for _, run in ipairs(read('SRANDMEMBER', executions_of(worker), MAX_HELD) or {}) do note(string.match(run, '^(.+):[^:]+$')) end

-- What is its own of a queue, the last that it claimed first: a part of it goes back before what was claimed earlier.
local function held_of(queue)
  local runs = {}
  for i, held in ipairs(values_of(TOKENS .. queue, ids)) do
    local _, owner = split(held)
    if owner == worker then runs[#runs + 1] = {ids[i], held} end
  end
  table.sort(runs, function(one, two) return one[2] > two[2] end)
  return runs
end

local back, room, left = {}, MOST, 0
for _, queue in ipairs(queues) do
  local part, tokens = {}, {}
  for i, run in ipairs(held_of(queue)) do
    if i > room then
      left = left + 1
    else
      part[i], tokens[i] = run[1], run[2]
      if begun[run[1]] then
        count_on('HINCRBY', DEATHS .. queue, run[1], 1)
        if count == 1 then count_on('HINCRBY', DEATHS .. queue, run[1] .. ':alone', 1) end
      end
    end
  end
  room = room - #part
  for _, id in ipairs(give_back(queue, part, tokens)) do back[#back + 1] = id end
end
local key, record = 'rq:worker:' .. worker, RECORD .. worker
write('SREM', 'rq:workers', key)
write('SREM', ROSTER, worker)
for queue in string.gmatch(read('HGET', key, 'queues') or '', '[^,]+') do write('SREM', 'rq:workers:' .. queue, key) end
local said = call('DEL', record)
call('DEL', key)
if left == 0 then call('DEL', executions_of(worker)) end
if said == 1 then
  local _, others = living_records(worker)
  for _, other in ipairs(others) do ring_at(other) end
end
return {back, left}
