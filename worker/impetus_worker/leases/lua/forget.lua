-- Closes the books on a run that was ended by RQ's own means, which know nothing of tokens.
--
-- ARGV: worker, job id, token, queue
-- Returns 1; 0 where the job is started yet under this token, so that RQ has not ended it, and nothing was done.
local worker, id, token, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local run = id .. ':' .. token
if read('HGET', TOKENS .. queue, id) == token .. ' ' .. worker then
  if read('HGET', 'rq:job:' .. id, 'status') == 'started' then return 0 end
  call('HDEL', TOKENS .. queue, id)
  write('ZREM', LEASES .. queue, id)
  call('DEL', CANCEL .. id, executions_keys(id, token))
end
write('ZREM', 'rq:wip:' .. queue, run)
write('SREM', executions_of(worker), run)
show_idle(worker)
return 1
