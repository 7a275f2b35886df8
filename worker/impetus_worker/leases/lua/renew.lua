-- Extends the leases of runs in flight, each only while its token stands.
--
-- ARGV: worker, lease (s), how much longer RQ's registry waits (s), then for each run: job id, token, queue
-- Returns {the ids of runs that are no longer this worker's}, {the ids of jobs that somebody wants cancelled}.
local worker, lease, margin = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local seconds, micros = server_time()
local lease_end, score = seconds + micros / 1000000 + lease, seconds + lease + margin
local ids, by_queue, lost, wishes, wanted = {}, {}, {}, {}, {}
for at = 4, #ARGV, 3 do
  local queue = ARGV[at + 2]
  local runs = by_queue[queue] or {ids = {}, tokens = {}}
  by_queue[queue] = runs
  runs.ids[#runs.ids + 1] = ARGV[at]
  runs.tokens[#runs.tokens + 1] = ARGV[at + 1]
end
-- First, because a server out of memory allows this, and then what a script does after its first write.
if #ARGV > 3 then call('EXPIRE', executions_of(worker), lease + 600) end
for queue, runs in pairs(by_queue) do
  local held = values_of(TOKENS .. queue, runs.ids)
  local ends = {}
  for at, id in ipairs(runs.ids) do
    if held[at] == runs.tokens[at] .. ' ' .. worker then
      ends[#ends + 1], ends[#ends + 2] = lease_end, id
      collect('ZADD', 'rq:wip:' .. queue, score, id .. ':' .. runs.tokens[at])
      wishes[#wishes + 1], ids[#ids + 1] = CANCEL .. id, id
    else
      lost[#lost + 1] = id
      collect('SREM', executions_of(worker), id .. ':' .. runs.tokens[at])
    end
  end
  in_parts(ends, 1000, function(...) write('ZADD', LEASES .. queue, ...) end)
end
send_collected()
local at = 1
in_parts(wishes, 1000, function(...)
  for _, wish in ipairs(call('MGET', ...)) do
    if wish then wanted[#wanted + 1] = ids[at] end
    at = at + 1
  end
end)
if #lost > 0 then show_idle(worker) end
return {lost, wanted}
