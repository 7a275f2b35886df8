-- Finds started jobs that no lease is kept for any more, because the server dropped it (eviction) or somebody deleted
-- it, and puts them back: a part of RQ's started registry a call. Runs that stock workers started are not ours.
--
-- ARGV: queue, what our tokens begin with, how long the others leave it alone then (ms)
-- Returns the ids put back.
local queue, registry, mark = ARGV[1], 'rq:wip:' .. ARGV[1], ARGV[2]
local turn = 'impetus:recovery:sweep:' .. queue
if not takes_turn(turn, ARGV[3]) then return {} end
local scanned = scan_on(turn, 'ZSCAN', {registry}, 'COUNT', 200)
local ids, tokens, runs = {}, {}, {}
for at = 1, #scanned, 2 do
  local run = scanned[at]
  local id, token = string.match(run, '^(.+):([^:]+)$')
  if id and string.sub(token, 1, #mark) == mark then
    ids[#ids + 1], tokens[#tokens + 1], runs[#runs + 1] = id, token, run
  end
end
local held, adrift = values_of(TOKENS .. queue, ids), {}
for at, id in ipairs(ids) do
  local token, worker = split(held[at])
  if token ~= tokens[at] then
    collect('ZREM', registry, runs[at])
    -- Where another run of the same job stands, this was the trace of an older one and nothing else.
    if not token then adrift[#adrift + 1] = id end
  elseif not read('ZSCORE', LEASES .. queue, id) then
    collect('ZADD', LEASES .. queue, 0, id)  -- the next recovery takes it, unless its worker renews it before
  end
end
send_collected()
local nothing = {}
for at = 1, #adrift do nothing[at] = false end
return give_back(queue, adrift, nothing)
