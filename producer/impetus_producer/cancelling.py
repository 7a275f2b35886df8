"""Cancelling a job: at once while it waits, by a wish that its worker fulfils while it runs.

Does to a job that waits what RQ's own classes do, in one step. Source of the layout: rq 3.0, `Job.cancel`,
`RateLimitRegistry.cancel`. Dependents stay deferred, as they do there.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from . import jobs
from .contract import CANCEL_TTL_S
from .errors import JobNotFoundError, ResultTimeoutError

if TYPE_CHECKING:
    from redis import Redis

    from .patience import Patience

_POLL_S = 0.5

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


def cancel(connection: Redis, patience: Patience, job_id: str, timeout_s: float) -> bool:
    """Cancels a job that waits, or has one that runs stopped and waits until it is. False when it had ended before.

    Raises `ResultTimeoutError` where it still runs after `timeout_s`; the wish stands. `JobNotFoundError` if there is
    none.
    """
    deadline = time.monotonic() + timeout_s
    name, told = jobs.new_id(), ""
    wished = False
    while True:
        answer = patience.ask(connection, partial(_step, connection, job_id, name), deadline=deadline)
        if answer is None and not wished:
            raise JobNotFoundError(f"there is no job {job_id}, or its time to live ran out")
        if answer is None or answer[0] in ("finished", "failed"):
            return False
        status, worker = answer
        if status in ("canceled", "stopped"):
            return wished
        if status != "started":
            return True
        wished = True
        if worker != told:
            told = worker
            patience.ask(connection, partial(_tell, connection, worker, job_id), deadline=deadline)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise ResultTimeoutError(
                f"job {job_id} was told to stop and has not yet: its worker does so as soon as it can, look later"
            )
        wait = partial(_await_end, connection, job_id, min(left_s, _POLL_S))
        patience.ask(connection, wait, deadline=deadline)


def _await_end(connection: Redis, job_id: str, limit_s: float) -> None:
    """What ends a job leaves an entry here. Where it came before we looked, the limit is what it costs."""
    connection.xread({jobs.results_key(job_id): "$"}, block=max(1, int(1000 * limit_s)))


def _step(connection: Redis, job_id: str, name: str) -> tuple[str, str] | None:
    now = datetime.now(UTC).strftime(jobs.TIME_FORMAT)
    script = connection.register_script(CANCEL_SCRIPT)
    answer: Any = script(args=[job_id, jobs.cancel_key(job_id), CANCEL_TTL_S, now, name])
    if not answer:
        return None
    status, worker, *_ = [each.decode() for each in answer] + [""]
    return status, worker


def _tell(connection: Redis, worker: str, job_id: str) -> None:
    """RQ's own command. It only makes it quick: where we may not publish, the wish is enough."""
    from redis.exceptions import NoPermissionError

    if worker:
        with suppress(NoPermissionError):
            connection.publish(f"rq:pubsub:{worker}", json.dumps({"command": "stop-job", "job_id": job_id}))
