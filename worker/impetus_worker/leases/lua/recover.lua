-- Puts jobs whose lease ran out back at the front of their queue. A lapse is no death: the worker may have slept, or
-- lost the network, or the answer to its claim. No retry is used up, no callback runs, nobody is blamed.
-- Costs what has lapsed, and not what is in flight. One worker at a time: whoever comes meanwhile finds nothing to do.
--
-- ARGV: queue, how long the others leave it alone then (ms), until when by this server's time it may be done (s) or '',
--       longer than any lease (s)
-- Returns the ids put back, the first of the queue first.
local queue = ARGV[1]
local MOST = 100  -- a call
local seconds, micros = server_time()
if ARGV[3] ~= '' and seconds + micros / 1000000 > tonumber(ARGV[3]) then return {} end
if not takes_turn('impetus:recovery:' .. queue, ARGV[2]) then return {} end
local now = string.format('%d.%06d', seconds, micros)
local lapsed = read('ZRANGEBYSCORE', LEASES .. queue, '-inf', now, 'LIMIT', 0, MOST) or {}
if #lapsed == MOST then call('DEL', 'impetus:recovery:' .. queue) end  -- there may be more, at once
-- Leases from before this server's clock was set back: else they would last until it is there again.
local longest = seconds + tonumber(ARGV[4])
for _, id in ipairs(read('ZRANGEBYSCORE', LEASES .. queue, '(' .. longest, '+inf', 'LIMIT', 0, MOST) or {}) do
  collect('ZADD', LEASES .. queue, longest, id)
end
return give_back(queue, lapsed, values_of(TOKENS .. queue, lapsed))
