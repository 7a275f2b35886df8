-- Closes the books on a run that was ended by RQ's own means, which know nothing of tokens.
--
-- ARGV: worker, job id, token, queue
local worker, id, token, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local run = id .. ':' .. token
if read('HGET', TOKENS .. queue, id) == token .. ' ' .. worker then
  call('HDEL', TOKENS .. queue, id)
  write('ZREM', LEASES .. queue, id)
  call('DEL', CANCEL .. id, 'rq:executions:' .. id)
end
write('ZREM', 'rq:wip:' .. queue, run)
write('SREM', executions_of(worker), run)
show_idle(worker)
