"""What an operator does: tries a failed job again, and has the workers stop taking jobs.

Does what RQ's own classes do. Source: rq 3.0, `FailedJobRegistry.requeue`, `suspension.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .enqueueing import jobs
from .errors import JobNotFoundError
from .servers.troubles import server_errors

if TYPE_CHECKING:
    from redis import Redis

_SUSPENDED = "rq:suspended"


def retry(connection: Redis, job_id: str) -> bool:
    """Puts a job that failed at the end of its queue again. False where it did not fail, or somebody did so before.

    Raises `JobNotFoundError`, or a `ServerError`.
    """
    key = jobs.job_key(job_id)

    def step(pipeline: Any) -> bool:
        status, origin = pipeline.hmget(key, "status", "origin")
        if status is None or origin is None:
            raise JobNotFoundError(f"there is no job {job_id}, or its time to live ran out")
        registry = b"rq:failed:" + origin
        failed = status == b"failed" and pipeline.zscore(registry, job_id) is not None
        pipeline.multi()
        if failed:
            now = datetime.now(UTC).strftime(jobs.TIME_FORMAT)
            pipeline.zrem(registry, job_id)
            pipeline.hset(key, mapping={"status": "queued", "enqueued_at": now, "started_at": "", "ended_at": ""})
            pipeline.persist(key)
            pipeline.rpush(b"rq:queue:" + origin, job_id)
        return failed

    with server_errors(connection):
        # Anew where somebody does the same meanwhile.
        done: Any = connection.transaction(step, key, value_from_callable=True)  # type: ignore[arg-type]
    return bool(done)


def suspend(connection: Redis) -> None:
    """Workers finish what they run and take nothing, until `resume`. Raises a `ServerError`."""
    with server_errors(connection):
        connection.set(_SUSPENDED, 1)


def resume(connection: Redis) -> None:
    """Raises a `ServerError`."""
    with server_errors(connection):
        connection.delete(_SUSPENDED)
