-- Puts the jobs of dead workers back at the front of their queue: those in the started registry that an Impetus
-- worker claimed and whose lease ran out. A retry is not used up and no callback runs. They are suspects now: each
-- runs alone next, and every death that it meets alone is counted.
--
-- ARGV: queue
-- Returns the ids put back, the first of the queue first.
local queue, back = ARGV[1], {}
local registry = 'rq:wip:' .. queue
local entries = redis.call('ZRANGE', registry, 0, -1)
for at = #entries, 1, -1 do
  local composite = entries[at]
  local id, execution = string.match(composite, '^(.+):([^:]+)$')
  if id and redis.call('EXISTS', 'rq:execution:' .. composite) == 0 then
    local key = 'rq:job:' .. id
    local old = redis.call('TYPE', key).ok == 'hash'
        and redis.call('HMGET', key, 'status', 'impetus_execution', 'impetus_alone', 'worker_name') or {}
    if old[2] == execution then
      redis.call('ZREM', registry, composite)
      redis.call('DEL', 'rq:executions:' .. id)
      -- The worker may live: it never heard that it had claimed this.
      if old[4] then
        local worker_key = 'rq:worker:' .. old[4]
        redis.call('SREM', worker_key .. ':executions', composite)
        if redis.call('EXISTS', worker_key .. ':executions') == 0 and redis.call('HGET', worker_key, 'state') == 'busy' then
          redis.call('HSET', worker_key, 'state', 'idle')
        end
      end
      redis.call('HDEL', key, 'impetus_execution')
      if old[1] == 'started' then
        redis.call('HSET', key, 'status', 'queued', 'started_at', '', 'worker_name', '', 'impetus_suspect', 1)
        if old[3] == '1' then
          local deaths = tonumber(redis.call('HGET', key, 'impetus_deaths')) or 0
          redis.call('HSET', key, 'impetus_deaths', string.format('%d', deaths + 1))
        end
        redis.call('LPUSH', 'rq:queue:' .. queue, id)
        local waits = redis.call('HGET', key, 'ttl')
        if waits and tonumber(waits) then redis.call('EXPIRE', key, waits) end
        table.insert(back, 1, id)
      end
    elseif old[1] ~= 'started' or old[2] then
      -- The job was deleted, ended otherwise or runs elsewhere; what is left are those that stock workers started.
      redis.call('ZREM', registry, composite)
    end
  end
end
return back
