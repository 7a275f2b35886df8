"""Our scripts in Python, for a fakeredis without lupa, which runs no Lua. A real server never gets to see these.

One does what the other does; a test holds them together. Rate limits are left out here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..enqueueing.jobs import job_key, queue_key
from ..enqueueing.scripts import CANCEL_SCRIPT, ENQUEUE_SCRIPT, WITHDRAW_SCRIPT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from redis import Redis

_ENDED = (b"finished", b"failed", b"canceled", b"stopped")


def teach(client: Redis) -> Redis:
    """The client, which runs our scripts as Python from now on."""
    taught: Any = client
    taught.register_script = lambda script: partial(run, client, script)
    return client


def teach_as(taught: Redis, client: Any) -> None:
    """Has a client for asyncio run them as `taught` does, which has the same server."""

    def register(script: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def promised(*, args: Sequence[Any]) -> Any:
            return run(taught, script, args=args)

        return promised

    client.register_script = register


def run(client: Redis, script: str, *, args: Sequence[Any]) -> Any:
    """What the script returns."""
    return _STEPS[script](client, args)


def _enqueue(client: Any, args: Sequence[Any]) -> int:
    queue, common_count = queue_key(args[0]), int(args[1])
    at = 2 + 2 * common_count
    common = dict(zip(args[2:at:2], args[3:at:2], strict=True))
    client.sadd("rq:queues", queue)
    for job_id, data in zip(args[at::2], args[at + 1 :: 2], strict=True):
        if client.hsetnx(job_key(job_id), "data", data):
            client.hset(job_key(job_id), mapping=common)
            client.rpush(queue, job_id)
    return int(client.llen(queue))


def _cancel(client: Any, args: Sequence[Any]) -> list[bytes] | None:
    job_id, wish, ttl_s, _, name = args
    job = job_key(job_id)

    def step(pipeline: Any) -> list[bytes] | None:
        status, origin, worker, by = pipeline.hmget(job, "status", "origin", "worker_name", "cancelled_by")
        pipeline.multi()
        if status is None or origin is None:
            return None
        if status == b"canceled" and by == name.encode():
            return [b"queued"]
        if status in _ENDED:
            return [status]
        if status == b"started":
            pipeline.set(wish, 1, ex=ttl_s)
            return [status, worker or b""]
        pipeline.lrem(queue_key(origin.decode()), 0, job_id)
        for registry in ("deferred", "scheduled", "ready"):
            pipeline.zrem(f"rq:{registry}:{origin.decode()}", job_id)
        pipeline.hset(job, mapping={"status": "canceled", "cancelled_by": name})
        pipeline.zadd(f"rq:canceled:{origin.decode()}", {job_id: now_s})
        pipeline.delete(wish)
        return [status]

    now_s = client.time()[0]
    # Anew where a worker takes the job meanwhile.
    answer: list[bytes] | None = client.transaction(step, job, value_from_callable=True)
    return answer


def _withdraw(client: Any, args: Sequence[Any]) -> list[bytes]:
    queue, *job_ids = args
    withdrawn = [job_id for job_id in job_ids if client.lrem(queue_key(queue), -1, job_id)]
    for job_id in withdrawn:
        client.delete(job_key(job_id))
    return [job_id.encode() for job_id in withdrawn]


_STEPS: dict[str, Callable[[Any, Sequence[Any]], Any]] = {
    ENQUEUE_SCRIPT: _enqueue,
    CANCEL_SCRIPT: _cancel,
    WITHDRAW_SCRIPT: _withdraw,
}
