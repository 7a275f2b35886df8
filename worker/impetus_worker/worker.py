"""The one loop: claim, dispatch, settle, wait. One thread drives it, and it never blocks but in one place.

It is an RQ worker to everyone who looks (`rq info`, stop-job, `rq suspend`), and runs jobs of its two names only.
While the engine works on batch k, the loop finishes k-1 and prepares k+1. It waits on sockets: the engine's pipe,
a doorbell a queue, signals and RQ's commands.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.serializers import JSONSerializer
from rq.worker.base import BaseWorker, WorkerStatus

from impetus_producer.contract import ROLE_QUEUES

from . import inbox, presence
from .batching import Batcher, Failed, Outcome, Returned, Room, Stopped
from .claims import ClaimedJob, Claims
from .doorbell import Doorbell
from .engine_process import EngineProcess
from .errors import EngineDiedError, JobTimeoutError, LeaseLostError, PoisonedJobError
from .lease import LeaseKeeper
from .lifecycle import Lifecycle
from .quarantine import DEATHS_ALONE
from .roles import engine_config, make_batcher

if TYPE_CHECKING:
    from redis import Redis
    from rq import Queue
    from rq.executions import Execution
    from rq.job import Job
    from rq.registry import StartedJobRegistry

    from .settings import WorkerSettings

_MAX_CLAIM_BYTES = 32_000_000
_IDLE_WAIT_S = 1.0
_SUSPENDED_WAIT_S = 1.0
_WORKER_KEY_TTL_S = 60
_MAX_BACKOFF_S = 5.0
_UNRESPONSIVE_S = 5.0
"""An engine that is told to drop a timed-out job and says nothing for so long is stuck in the device."""
_FAREWELL_S = 10.0
_HUNG_S = 300.0
"""An engine with work that says nothing for so long keeps no lease alive."""
_MAX_DEATHS_IN_A_ROW = 30

_POISON = f"{DEATHS_ALONE} workers died with this job in flight, and nothing beside it"

WARM, COLD = "warm", "cold"


class QueueWorker(BaseWorker):
    """A worker of one role. `run()` serves until it is told to stop, and returns the exit status."""

    def __init__(self, settings: WorkerSettings, connection: Redis, *, lifeline: int | None = None) -> None:
        """`lifeline`: a file descriptor that is readable, or closed, when the worker should stop."""
        self._settings = settings
        queues = ROLE_QUEUES[settings.role]
        super().__init__(
            list(queues), name=settings.name, connection=connection, serializer=JSONSerializer, worker_ttl=30
        )
        self.log = logging.getLogger(__name__)
        self.log_result_lifespan = False
        self._interactive, self._all_queues = queues[:1], queues
        self._claims = Claims(connection, self.name, settings.lease_s)
        self._lifecycle = Lifecycle(self, self._claims, self.default_result_ttl, settings.allow_callbacks)
        self._chores = presence.Chores(connection, self._claims, queues, settings.lease_s / 4)
        self._engine = EngineProcess(engine_config(settings))
        self._batcher: Batcher | None = None
        self._in_flight: dict[str, ClaimedJob] = {}
        self._unsettled: list[Outcome] = []
        self._lease = LeaseKeeper(
            self._claims,
            jobs=lambda: list(self._in_flight.values()),
            is_alive=self._engine_moves,
            heartbeat=lambda: presence.heartbeat(self, _WORKER_KEY_TTL_S),
            interval_s=settings.lease_s / 4,
        )
        self._bells = [Doorbell(connection, queue) for queue in queues]
        self._may_have_jobs = dict.fromkeys(queues, True)
        self._suspended_until = 0.0
        self._drain = False
        self._inbox = inbox.Inbox(lifeline)
        self._stopping: str | None = None
        self._deaths_in_a_row = 0
        self._answer_by: float | None = None
        self._backoff_s = 0.0

    # -- from birth to death -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Loads the model, then serves. Returns 0 when it was told to stop, or in burst mode when all is done.

        Raises `ConfigurationError` when the model cannot be loaded as told.
        """
        self._inbox.open()
        if self._settings.predecessor:
            self._claims.abandon(self._settings.predecessor)
        registered = False
        try:
            self._engine.start()
            self._await_engine()
            if self._stopping:
                return 0
            self.register_birth()  # type: ignore[no-untyped-call]
            registered = True
            self.subscribe()  # type: ignore[no-untyped-call]
            self.set_state(WorkerStatus.IDLE)
            self._lease.start()
            self.log.info("worker %s serves %s", self.name, ", ".join(self._all_queues))
            self._serve()
        finally:
            self._leave(registered)
        return 0

    def _await_engine(self) -> None:
        """Waits until the engine has loaded: a worker claims nothing before its backend has earned it."""
        while self._engine.info is None and not self._stopping:
            self._inbox.wait([self._engine], None)
            self._obey()
            self._engine.receive()
        if (info := self._engine.info) is not None and self._batcher is None:
            for reason in info.reasons:
                self.log.info("%s", reason)
            self.log.info("%s engine: %s on %s (%s), model %s", info.kind, info.backend, info.device, info.precision,
                          info.model)  # fmt: skip
            if info.note:
                self.log.warning("%s", info.note)
            self._batcher = make_batcher(self._settings, info)

    def _serve(self) -> None:
        while True:
            try:
                self._obey()
                if self._stopping == COLD or (self._stopping and not self._in_flight and not self._unsettled):
                    return
                self._hear_engine()
                self._settle()
                self._look_after()
                self._claim()
                self._dispatch()
                if self._settings.burst and self._is_drained():
                    self.log.info("the queues are empty and --burst was given: done")
                    return
                self._wait()
                self._backoff_s = 0.0
            except (RedisConnectionError, RedisTimeoutError, OutOfMemoryError) as error:
                if self._stopping:
                    self.log.error("Redis: %s; stopping without it", error)
                    return
                self._back_off(error)

    def _leave(self, registered: bool) -> None:
        """Puts back what is still in flight and says goodbye. Every step is tried, whatever happened to the others."""
        self._lease.stop()
        self._engine.kill()
        self._inbox.close()
        try:
            if self._in_flight or self._unsettled:
                back = [Returned(job) for job in reversed(self._unended().values())]
                self.log.info("putting %d unfinished jobs back", len(back))
                self._lifecycle.settle([*self._unsettled, *back])
            self._lifecycle.close(patience_s=0.0 if self._stopping == COLD else _FAREWELL_S)
            for bell in self._bells:
                bell.close()
            if registered:
                self._chores.stop()
                self.register_death()  # type: ignore[no-untyped-call]
                self.unsubscribe()  # type: ignore[no-untyped-call]
        except RedisError as error:
            self.log.warning("could not say goodbye to Redis: %s; leases run out by themselves", error)

    # -- the steps of the loop ---------------------------------------------------------------------------------------

    def _hear_engine(self) -> None:
        """Takes what the engine says. If it died, its work is put where it runs again, and another is started."""
        try:
            events = self._engine.receive()
        except EngineDiedError as error:
            self._deaths_in_a_row += 1
            self.log.error("%s; what it held will run again", error)
            if self._deaths_in_a_row > _MAX_DEATHS_IN_A_ROW:
                raise
            self._restart_engine(suspect=True)
            return
        if events:
            self._deaths_in_a_row = 0
            assert self._batcher is not None
            for event in events:
                self._unsettled += self._batcher.absorb(event)

    def _restart_engine(self, *, suspect: bool) -> None:
        assert self._batcher is not None
        self._engine.kill()
        self._answer_by = None
        self._unsettled += self._batcher.engine_died(suspect=suspect)
        self._engine.start()

    def _settle(self) -> None:
        """Ends jobs in Redis. What could not be written is tried again."""
        if self._unsettled:
            by_rq = self._lifecycle.settle(self._unsettled)
            for outcome in self._unsettled:
                self._forget(outcome.job)
            self._unsettled = []
            if not self._in_flight:
                self._state = WorkerStatus.IDLE
                if by_rq:  # the script says that the worker is idle again, RQ does not
                    self.set_state(WorkerStatus.IDLE)

    def _look_after(self) -> None:
        now = time.monotonic()
        self._chores.run(now)
        for job in self._lease.check():
            if self._in_flight.get(job.id) is job:
                self.log.warning("job %s: its lease ran out; another worker has it", job.id)
                self._drop(job.id)
                self._forget(job)
        for job in self._unended().values():
            self._enforce_timeout(job, now)
        if self._answer_by is not None and now > self._answer_by:
            silent_s = self._engine.silent_s()
            if silent_s >= _UNRESPONSIVE_S:
                self.log.error("the engine has been stuck for %.0f s: restarting it", silent_s)
                self._restart_engine(suspect=False)
            self._answer_by = None

    def _enforce_timeout(self, job: ClaimedJob, now: float) -> None:
        assert self._batcher is not None
        timeout_s = job.timeout_s
        started_at = self._batcher.started_at(job.id)
        if timeout_s is None or started_at is None or now - started_at <= timeout_s:
            return
        self._drop(job.id)
        self._unsettled.append(Failed(job, JobTimeoutError(f"the job ran longer than its timeout of {timeout_s} s")))

    def _claim(self) -> None:
        assert self._batcher is not None
        now = time.monotonic()
        if self._stopping or self._engine.info is None or now < self._suspended_until:
            return
        room = self._room()
        queues, jobs = (self._all_queues, room.bulk) if room.bulk else (self._interactive, room.interactive)
        if not jobs or not any(self._may_have_jobs[queue] for queue in queues):
            return
        claim = self._claims.claim(queues, jobs, _MAX_CLAIM_BYTES, idle=not self._in_flight)
        self._drain = claim.drain
        if claim.suspended:
            self._suspended_until = now + _SUSPENDED_WAIT_S
            self._show_state(WorkerStatus.SUSPENDED)
            return
        if self._state == WorkerStatus.SUSPENDED:
            self._show_state(WorkerStatus.IDLE)
        if len(claim.jobs) < jobs and not claim.drain and not any(job.suspect for job in claim.jobs):
            self._may_have_jobs.update(dict.fromkeys(queues, False))
        if claim.jobs:
            self._state = WorkerStatus.BUSY
            for job in claim.jobs:
                if job.id in self._in_flight:
                    # Its lease ran out, it went back to the queue, and it is ours again: the earlier run is over.
                    self._drop(job.id)
            self._in_flight.update((job.id, job) for job in claim.jobs)
            poison = [job for job in claim.jobs if job.deaths_alone >= DEATHS_ALONE]
            self._unsettled += [Failed(job, PoisonedJobError(_POISON)) for job in poison]
            self._unsettled += self._batcher.add([job for job in claim.jobs if job not in poison], now)

    def _room(self) -> Room:
        """How many jobs to claim: none while a suspect runs, which has nothing beside it, or waits for that."""
        assert self._batcher is not None
        if self._in_flight and (self._drain or any(job.suspect for job in self._in_flight.values())):
            return Room(0, 0)
        return self._batcher.room()

    def _dispatch(self) -> None:
        if self._engine.info is None:
            return
        assert self._batcher is not None
        self._admit_work(self._batcher)  # the device first: what is ready does not wait for what is not
        self._unsettled += self._batcher.prepare(time.monotonic())
        self._admit_work(self._batcher)

    def _admit_work(self, batcher: Batcher) -> None:
        while (work := batcher.next_work(time.monotonic())) is not None:
            self._engine.admit(work)

    def _wait(self) -> None:
        """The one place where the loop blocks."""
        assert self._batcher is not None
        now = time.monotonic()
        if self._unsettled:
            return
        deadlines = [now + _IDLE_WAIT_S]
        if self._engine.info is not None and (wakes_at := self._batcher.wakes_at()) is not None:
            deadlines.append(wakes_at)
        bells: list[Doorbell] = []
        if not self._stopping and self._engine.info is not None and now >= self._suspended_until:
            room = self._room()
            for bell, places in zip(self._bells, (room.interactive, room.bulk), strict=True):
                if places and self._may_have_jobs[bell.queue]:
                    return
                if places or bell.armed:
                    bell.arm()
                    bells.append(bell)
        for ready in self._inbox.wait([self._engine, *bells], min(deadlines) - now):
            if isinstance(ready, Doorbell):
                self._may_have_jobs[ready.queue] |= ready.rang()

    # -- RQ's own endings --------------------------------------------------------------------------------------------

    def handle_job_success(
        self, job: Job, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        self._assert_ours(execution)
        super().handle_job_success(job, queue, started_job_registry, execution)

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        assert execution is not None
        self._assert_ours(execution)
        super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def _assert_ours(self, execution: Execution) -> None:
        """Called after a job's callback, which may have outlasted any lease, and before RQ's own transaction."""
        claimed = self._in_flight.get(execution.job_id)
        if claimed is None or claimed.execution_id != execution.id or not self._claims.seal(claimed):
            raise LeaseLostError(f"job {execution.job_id}: its lease was lost")

    # -- being told --------------------------------------------------------------------------------------------------

    def handle_payload(self, message: dict[str, Any]) -> None:
        """RQ's commands arrive in a thread of redis-py's; the loop obeys them."""
        self._inbox.receive(message)

    def _obey(self) -> None:
        for command in self._inbox.commands():
            match command.name:
                case inbox.SHUTDOWN:
                    self._stop(COLD if self._stopping else WARM)
                case inbox.SUPERVISOR_GONE if not self._stopping:
                    self._stop(WARM)
                case "stop-job" | "stop-execution" if command.job_id in self._unended():
                    self.log.info("job %s: stopped by its user", command.job_id)
                    self._drop(command.job_id)
                    self._unsettled.append(Stopped(self._in_flight[command.job_id]))
                case "kill-horse" if self._batcher is not None:
                    self._restart_engine(suspect=False)
                case other:
                    self.log.warning("ignoring the command %r for job %r", other, command.job_id)

    def _stop(self, manner: str) -> None:
        """Warm: what the engine has begun is finished, the rest goes back. Cold: everything goes back at once."""
        self._stopping = manner
        self.log.info("stopping (%s)%s", manner, "; signal again to stop at once" if manner == WARM else "")
        if manner == WARM and self._batcher is not None:
            for job in reversed(self._unended().values()):
                if self._batcher.started_at(job.id) is None:
                    self._drop(job.id)
                    self._unsettled.append(Returned(job))

    def _drop(self, job_id: str) -> None:
        """Forgets the job. If the engine is at it, and gives no sign of life, it is stuck."""
        assert self._batcher is not None
        if self._batcher.in_engine(job_id):
            self._answer_by = time.monotonic() + _UNRESPONSIVE_S
        for work_id in self._batcher.drop(job_id):
            self._engine.cancel(work_id)

    def _unended(self) -> dict[str, ClaimedJob]:
        """The jobs in flight that no outcome waits to be written for."""
        ended = {outcome.job.execution_id for outcome in self._unsettled}
        return {job_id: job for job_id, job in self._in_flight.items() if job.execution_id not in ended}

    def _forget(self, job: ClaimedJob) -> None:
        """This run of the job is over; another one of the same job may be in flight."""
        if self._in_flight.get(job.id) is job:
            del self._in_flight[job.id]

    # -- small things ------------------------------------------------------------------------------------------------

    def _show_state(self, state: WorkerStatus) -> None:
        if self._state != state:
            self.set_state(state)

    def _is_drained(self) -> bool:
        return (
            not self._in_flight
            and not self._unsettled
            and self._engine.info is not None
            and (not any(self._may_have_jobs.values()) or time.monotonic() < self._suspended_until)
        )

    def _engine_moves(self) -> bool:
        return self._engine.silent_s() < _HUNG_S

    def _back_off(self, error: RedisError) -> None:
        self._backoff_s = min(_MAX_BACKOFF_S, self._backoff_s * 2 or 0.1)
        self.log.error("Redis: %s; trying again in %.1f s", error, self._backoff_s)
        for bell in self._bells:
            bell.close()
        self._may_have_jobs = dict.fromkeys(self._all_queues, True)
        self._inbox.wait([], self._backoff_s)
