"""What RQ leaves to its workers: enqueueing scheduled jobs when they are due, and cleaning registries.

Nothing here imports what a job names, and nothing takes long: scheduled jobs are enqueued some hundreds at a time.
RQ's own cleanup of the started registry runs failure callbacks, so it is left out; recovery takes its place.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq import Queue
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.exceptions import NoSuchJobError
from rq.group import Group
from rq.rate_limit import RateLimitRegistry
from rq.registry import (
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ReadyJobRegistry,
    ScheduledJobRegistry,
)
from rq.serializers import JSONSerializer

from ..companions.link import is_about_data
from ..leases.rq_job import StoredJob
from ..leases.scripts import Call, Script, ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

REGISTRIES_INTERVAL_S = 600.0
_SCHEDULED_AT_ONCE = 500
_RATE_LIMITS_AT_ONCE = 1000
_RATE_LIMITS_S = 2.0
_log = logging.getLogger(__name__)


class Schedule:
    """Enqueues the scheduled jobs of these queues that are due."""

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = queues

    def __call__(self, connection: Redis) -> bool:
        """Whether more are due."""
        more = False
        for queue in self._queues:
            call = Call(
                Script.named("schedule"), [queue, _SCHEDULED_AT_ONCE], lambda answer: (int(answer[0]), ids(answer[1]))
            )
            due, for_rq = call.run(connection)
            for job_id in for_rq:
                _enqueue_by_rq(connection, queue, job_id)
            more = more or due == _SCHEDULED_AT_ONCE
        return more


def _enqueue_by_rq(connection: Redis, queue: str, job_id: str) -> None:
    """A job with a rate limit waits for its slot, as RQ has it."""
    registry = ScheduledJobRegistry(queue, connection=connection, serializer=JSONSerializer, job_class=StoredJob)
    target = Queue(queue, connection=connection, serializer=JSONSerializer, job_class=StoredJob)
    try:
        job = StoredJob.fetch(job_id, connection=connection, serializer=JSONSerializer)
        with connection.pipeline() as pipeline:
            registry.remove(job.id, pipeline=pipeline)
            target._enqueue_rate_limited_job(job, pipeline=pipeline, at_front=job.should_enqueue_at_front())
            pipeline.execute()
    except Exception as error:  # noqa: BLE001 - whatever bytes lie in the hash
        _raise_passing(error)
        _fail_unreadable(connection, registry.key, queue, job_id, error)


class Registries:
    """Cleans the registries of these queues as RQ does, all but the started one."""

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = queues

    def __call__(self, connection: Redis) -> None:
        now: Any = connection.time()  # RQ would take this machine's clock, and throw results away that it finds too old
        for queue in self._queues:
            for kind in (FinishedJobRegistry, FailedJobRegistry, DeferredJobRegistry):
                registry = kind(queue, connection=connection, serializer=JSONSerializer, job_class=StoredJob)
                _try(lambda registry=registry: registry.cleanup(now[0]))  # type: ignore[misc]
            _try(lambda queue=queue: _enqueue_ready(connection, queue))  # type: ignore[misc]
        self._clean_rate_limits(connection)
        if Group.acquire_maintenance_lock(connection, int(REGISTRIES_INTERVAL_S) - 1):
            _try(lambda: Group.clean_registries(connection=connection))

    def _clean_rate_limits(self, connection: Redis) -> None:
        """Some of them, where there are very many: anybody may name one, and scheduled jobs wait meanwhile."""
        stop_at = time.monotonic() + _RATE_LIMITS_S
        names: Any = connection.srandmember("rq:rl-keys", _RATE_LIMITS_AT_ONCE)
        for name in names or ():
            if time.monotonic() >= stop_at:
                return
            limit = RateLimitRegistry(name.decode(errors="replace"), connection=connection)
            _try(limit.cleanup)


def _raise_passing(error: Exception) -> None:
    if isinstance(error, RedisError) and not is_about_data(error):
        raise error


def _try(chore: Callable[[], object]) -> None:
    try:
        chore()
    except Exception as error:  # noqa: BLE001 - RQ's chores raise on a hash they cannot read; the others go on
        _raise_passing(error)
        _log.error("one of RQ's chores failed; it is tried again in %.0f s", REGISTRIES_INTERVAL_S, exc_info=True)


def _enqueue_ready(connection: Redis, queue: str) -> None:
    registry = ReadyJobRegistry(queue, connection=connection, serializer=JSONSerializer, job_class=StoredJob)
    members: Any = connection.zrange(registry.key, 0, -1)
    for member in members:
        job_id = member.decode(errors="replace")
        try:
            registry.enqueue_jobs([job_id])
        except Exception as error:  # noqa: BLE001 - RQ reads many at once, and stops at one that it cannot read
            _raise_passing(error)
            _fail_unreadable(connection, registry.key, queue, job_id, error)


def _fail_unreadable(connection: Redis, registry: str, queue: str, job_id: str, error: Exception) -> None:
    """Moves a job that RQ cannot read from this registry to that of the failed."""
    if not isinstance(error, NoSuchJobError):
        _log.error("job %s in %s cannot be read, and is failed: %s", job_id, registry, error)
        at: Any = connection.time()
        _try(lambda: connection.hset(f"rq:job:{job_id}", "status", "failed"))
        _try(lambda: connection.zadd(f"rq:failed:{queue}", {job_id: at[0] + DEFAULT_FAILURE_TTL}))
    connection.zrem(registry, job_id)
