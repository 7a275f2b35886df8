-- Closes the books on a run that was ended by RQ's own means, which know nothing of tokens.
--
-- ARGV: worker, job id, token, queue
-- Returns 1; 0 where the job is started yet under this token, so that RQ has not ended it, and nothing was done.
local worker, id, token, queue = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local run = id .. ':' .. token
local held = read('HGET', TOKENS .. queue, id)
local started = read('HGET', 'rq:job:' .. id, 'status') == 'started'
if held == token .. ' ' .. worker then
  if started then return 0 end
  call('HDEL', TOKENS .. queue, id)
  write('ZREM', LEASES .. queue, id)
  write('HDEL', DEATHS .. queue, id, id .. ':alone')
  call('DEL', CANCEL .. id, executions_keys(id, token))
end
-- Where a started job has no token at all the trace stays: by it the sweep finds it.
if held or not started then write('ZREM', 'rq:wip:' .. queue, run) end
write('SREM', executions_of(worker), run)
show_idle(worker)
return 1
