"""What a worker says of itself in Redis, and the chores that some worker must do: RQ's records and registries.

Nothing here imports what a job names. RQ's own cleanup of the started registry runs failure callbacks, so it is left
out; `recover.lua` takes its place.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq import worker_registration
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.exceptions import NoSuchJobError
from rq.group import Group
from rq.job import Job
from rq.rate_limit import RateLimitRegistry
from rq.registry import (
    BaseRegistry,
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ReadyJobRegistry,
    ScheduledJobRegistry,
)
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from rq.utils import now

from impetus_producer.contract import STANDBY_QUEUE

from ..leases.claims import lua_source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis
    from rq.worker.base import BaseWorker

    from ..leases.claims import Claims

_REGISTRIES_INTERVAL_S = 600.0
_SCHEDULER_INTERVAL_S = 1.0
_SCHEDULER_LOCK_INTERVAL_S = 30.0


class Registration:
    """What RQ's records say of a worker: that it lives, and which queues it listens to. For threads to share."""

    def __init__(self, worker: BaseWorker, key_ttl_s: int) -> None:
        self._worker = worker
        self._key_ttl_s = key_ttl_s
        self._all_queues = (*worker.queue_names(), STANDBY_QUEUE)
        self._listen = worker.connection.register_script(lua_source("listen"))
        self._changing = threading.Lock()

    def heartbeat(self) -> None:
        """Renews the worker's record whole, so that it comes back after a server lost it."""
        worker = self._worker
        with self._changing:
            worker.last_heartbeat = now()
            # Also when the server is out of memory and takes nothing more.
            worker.connection.expire(worker.key, self._key_ttl_s)
            with worker.connection.pipeline(transaction=True) as pipeline:
                pipeline.hset(worker.key, mapping=worker.serialize())
                pipeline.hsetnx(worker.key, "state", worker.get_state())
                pipeline.expire(worker.key, self._key_ttl_s)
                worker_registration.register(worker, pipeline)
                for queue in set(self._all_queues).difference(worker.queue_names()):
                    pipeline.srem(f"rq:workers:{queue}", worker.key)
                pipeline.execute()

    def listen_to(self, queues: Sequence[str]) -> None:
        """From now on the worker is one of these queues', for RQ and whoever asks it."""
        worker = self._worker
        with self._changing:
            # First, so that a heartbeat after a failure says what is meant to be.
            worker.queues = [
                worker.queue_class(name, connection=worker.connection, serializer=JSONSerializer) for name in queues
            ]
            worker._ordered_queues = worker.queues[:]
            self._listen(args=[worker.name, STANDBY_QUEUE, len(queues), *queues, *self._all_queues])


class Chores:
    """Recovers dead workers' jobs, enqueues scheduled jobs, cleans registries. Call `run` often; it knows when."""

    def __init__(self, connection: Redis, claims: Claims, queues: Sequence[str], recovery_interval_s: float) -> None:
        self._connection = connection
        self._claims = claims
        self._queues = queues
        self._recovery_interval_s = recovery_interval_s
        self._scheduler = RQScheduler(
            list(queues), connection=connection, logging_level="WARNING", serializer=JSONSerializer
        )
        self._due = {"recover": 0.0, "lock": 0.0, "schedule": 0.0, "registries": 0.0}
        self._log = logging.getLogger(__name__)

    def run(self, monotonic_s: float) -> None:
        self._when_due("recover", self._recover, monotonic_s, self._recovery_interval_s)
        self._when_due("lock", self._scheduler.acquire_locks, monotonic_s, _SCHEDULER_LOCK_INTERVAL_S)
        if self._scheduler.acquired_locks:
            self._when_due("schedule", self._schedule, monotonic_s, _SCHEDULER_INTERVAL_S)
        self._when_due("registries", self._clean_registries, monotonic_s, _REGISTRIES_INTERVAL_S)

    def _recover(self) -> None:
        for queue in self._queues:
            if back := self._claims.recover(queue):
                self._log.warning("%d jobs of dead workers are back at the front of %s", len(back), queue)

    def _schedule(self) -> None:
        try:
            self._scheduler.enqueue_scheduled_jobs()
        except RedisError:
            raise
        except Exception:  # noqa: BLE001 - RQ reads many at once, and stops at one that it cannot read
            self._fail_unreadable(ScheduledJobRegistry)
            self._scheduler.enqueue_scheduled_jobs()

    def _clean_registries(self) -> None:
        for queue in self._queues:
            for registry in (FinishedJobRegistry, FailedJobRegistry, DeferredJobRegistry):
                registry(queue, connection=self._connection, serializer=JSONSerializer).cleanup()
            self._enqueue_ready(queue)
        for limit in RateLimitRegistry.all(self._connection):
            limit.cleanup()
        if Group.acquire_maintenance_lock(self._connection, int(_REGISTRIES_INTERVAL_S) - 1):
            Group.clean_registries(connection=self._connection)

    def _enqueue_ready(self, queue: str) -> None:
        registry = ReadyJobRegistry(queue, connection=self._connection, serializer=JSONSerializer)
        try:
            registry.cleanup()
        except RedisError:
            raise
        except Exception:  # noqa: BLE001 - as above
            self._fail_unreadable(ReadyJobRegistry)
            registry.cleanup()

    def _fail_unreadable(self, registry_class: type[BaseRegistry]) -> None:
        """Moves the jobs that RQ cannot read from this registry to that of the failed."""
        for queue in self._queues:
            key = registry_class(queue, connection=self._connection, serializer=JSONSerializer).key
            members: Any = self._connection.zrange(key, 0, -1)  # not get_job_ids(), which cleans, and so reads
            for member in members:
                job_id = member.decode(errors="replace")
                try:
                    Job.fetch(job_id, connection=self._connection, serializer=JSONSerializer)
                except (RedisError, NoSuchJobError):
                    continue
                except Exception as error:  # noqa: BLE001 - whatever bytes lie in the hash
                    self._log.error("job %s in %s cannot be read, and is failed: %s", job_id, key, error)
                    with self._connection.pipeline(transaction=True) as pipeline:
                        pipeline.zrem(key, member)
                        pipeline.hset(f"rq:job:{job_id}", "status", "failed")
                        pipeline.zadd(f"rq:failed:{queue}", {member: time.time() + DEFAULT_FAILURE_TTL})
                        pipeline.execute()

    def stop(self) -> None:
        if self._scheduler.acquired_locks:
            self._scheduler.release_locks()

    def _when_due(self, name: str, chore: Callable[[], object], monotonic_s: float, interval_s: float) -> None:
        if monotonic_s < self._due[name]:
            return
        self._due[name] = monotonic_s + interval_s
        try:
            chore()
        except RedisError:
            raise
        except Exception:  # noqa: BLE001 - RQ's chores raise on a hash they cannot read; the worker's work goes on
            self._log.error("the chore %r failed; it is tried again in %.0f s", name, interval_s, exc_info=True)
