"""What a producer has the server do in one step: enqueue jobs, withdraw some, and cancel one."""

import hashlib

ENQUEUE_SCRIPT = """
-- One step, and the same when it is sent again because its answer was lost: a job that is there is not touched.
-- ARGV: queue, number of common fields, their names and values, then id and data of each job
local queue, common, at = 'rq:queue:' .. ARGV[1], {}, 3
for _ = 1, ARGV[2] do
  common[#common + 1], common[#common + 2] = ARGV[at], ARGV[at + 1]
  at = at + 2
end
redis.call('SADD', 'rq:queues', queue)
while at < #ARGV do
  local id = ARGV[at]
  if redis.call('HSETNX', 'rq:job:' .. id, 'data', ARGV[at + 1]) == 1 then
    redis.call('HSET', 'rq:job:' .. id, unpack(common))
    redis.call('RPUSH', queue, id)
  end
  at = at + 2
end
return redis.call('LLEN', queue)
"""

CANCEL_SCRIPT = """
-- ARGV: the job's id, the key of the wish, its time to live in s, the time in RQ's form, a name of this cancellation
-- Returns the status that the job had, and the worker that runs it; nothing if there is no such job. The same when it
-- is sent again because its answer was lost: who cancelled the job is written down.
local id, job = ARGV[1], 'rq:job:' .. ARGV[1]
local has = redis.call('HMGET', job, 'status', 'origin', 'worker_name', 'rate_limit_key', 'cancelled_by')
local status, origin, limit = has[1], has[2], has[4]
if not status or not origin then return false end
if status == 'canceled' and has[5] == ARGV[5] then return {'queued'} end
if status == 'finished' or status == 'failed' or status == 'canceled' or status == 'stopped' then return {status} end
if status == 'started' then
  redis.call('SET', ARGV[2], 1, 'EX', ARGV[3])
  return {status, has[3] or ''}
end
local now = redis.call('TIME')[1]
redis.call('LREM', 'rq:queue:' .. origin, 0, id)
for _, registry in ipairs({'deferred', 'scheduled', 'ready'}) do
  redis.call('ZREM', 'rq:' .. registry .. ':' .. origin, id)
end
redis.call('HSET', job, 'status', 'canceled', 'cancelled_by', ARGV[5])
redis.call('ZADD', 'rq:canceled:' .. origin, now, id)
redis.call('DEL', ARGV[2])
if not limit or limit == '' then return {status} end
-- Its place goes to those that its rate limit held back.
local key = 'rq:rl:' .. limit
redis.call('ZREM', key .. ':rate_limited', id)
if redis.call('ZREM', key .. ':allowed', id) == 0 then return {status} end
local concurrency = tonumber(redis.call('HGET', key, 'concurrency') or 0)
while redis.call('ZCARD', key .. ':allowed') < concurrency do
  local next = redis.call('ZPOPMIN', key .. ':rate_limited')[1]
  if not next then break end
  local other = redis.call('HMGET', 'rq:job:' .. next, 'origin', 'status', 'enqueue_at_front')
  if other[1] and other[2] == 'rate_limited' then
    redis.call('ZADD', key .. ':allowed', now, next)
    redis.call(other[3] == '1' and 'LPUSH' or 'RPUSH', 'rq:queue:' .. other[1], next)
    redis.call('HSET', 'rq:job:' .. next, 'status', 'queued', 'enqueued_at', ARGV[4])
  end
end
return {status}
"""

WITHDRAW_SCRIPT = """
-- ARGV: queue, ids of jobs. Returns the ids of those that waited there. In two steps one would wait on no queue, for
-- ever, where whoever took it off went before it was deleted.
local queue, withdrawn = 'rq:queue:' .. ARGV[1], {}
for at = 2, #ARGV do
  if redis.call('LREM', queue, -1, ARGV[at]) > 0 then
    redis.call('DEL', 'rq:job:' .. ARGV[at])
    withdrawn[#withdrawn + 1] = ARGV[at]
  end
end
return withdrawn
"""


def digest(script: str) -> str:
    """The name that a server gives to the script, which its `EVALSHA` and a rule `+evalsha|<digest>` take."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
