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
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.serializers import JSONSerializer
from rq.worker.base import WorkerStatus

from impetus_producer.contract import ROLE_QUEUES, STANDBY_QUEUE

from . import inbox
from .batches.batcher import Batcher, Room
from .batches.quarantine import DEATHS_ALONE
from .errors import EngineDiedError, PoisonedJobError
from .fleet import presence, routing
from .fleet.routing import Routing, withdraw
from .host.engine_process import EngineProcess
from .interruptions import Interruptions
from .leases.claims import Claim, Claims
from .leases.doorbell import Doorbell
from .leases.endings import Lifecycle
from .leases.fenced import FencedWorker
from .leases.intake import Intake
from .leases.keeping import LeaseKeeper
from .leases.ledger import Ledger
from .leases.outcomes import Failed, Returned, Stopped
from .roles import engine_config, make_batcher, worker_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis
    from rq.executions import Execution

    from .leases.intake import Wanted
    from .settings import WorkerSettings

_IDLE_WAIT_S = 1.0
_WORKER_KEY_TTL_S = 60
_MAX_BACKOFF_S = 5.0
_FAREWELL_S = 10.0
_HUNG_S = 300.0
"""An engine with work that says nothing for so long keeps no lease alive."""
_MAX_DEATHS_IN_A_ROW = 30

_POISON = f"{DEATHS_ALONE} workers died with this job in flight, and nothing beside it"

WARM, COLD = "warm", "cold"

_PASSING = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError, NoScriptError)
"""What the server answers when it cannot serve now; the worker tries again."""


class QueueWorker(FencedWorker):
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
        self._claims = Claims(connection, self.name, settings.lease_s)
        self._lifecycle = Lifecycle(self, self._claims, self.default_result_ttl, settings.allow_callbacks)
        self._chores = presence.Chores(connection, self._claims, queues, settings.lease_s / 4)
        self._engine = EngineProcess(engine_config(settings))
        self._batcher: Batcher | None = None
        self._interruptions: Interruptions | None = None
        self._ledger = Ledger(
            connection, self._claims, self._lifecycle, on_claim=self._take_in, on_abandoned=self._abandon
        )
        self._registration = presence.Registration(self, _WORKER_KEY_TTL_S)
        self._routing: Routing | None = None
        self._lease = LeaseKeeper(
            self._claims,
            jobs=lambda: list(self._ledger.held.values()),
            is_alive=self._engine_moves,
            heartbeat=self._registration.heartbeat,
            interval_s=settings.lease_s / 4,
        )
        self._intake = Intake(connection, queues)
        self._inbox = inbox.Inbox(lifeline)
        self._stopping: str | None = None
        self._engine_deaths = 0
        self._deaths_in_a_row = 0
        self._backoff_s = 0.0

    # -- from birth to death -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Loads the model, then serves. Returns 0 when it was told to stop, or in burst mode when all is done.

        Raises `ConfigurationError` when the model cannot be loaded as told.
        """
        self._inbox.open()
        if self._settings.predecessor:
            self._claims.abandon(self._settings.predecessor)
            withdraw(self.connection, self._settings.predecessor)
        registered = False
        try:
            self._engine.start()
            self._await_engine()
            if self._stopping:
                return 0
            self._routing = self._find_place()
            self.register_birth()  # type: ignore[no-untyped-call]
            registered = True
            self.subscribe()  # type: ignore[no-untyped-call]
            self.set_state(WorkerStatus.IDLE)
            self._lease.start()
            self._routing.start()
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
                          ", ".join((info.model, *info.more_models)))  # fmt: skip
            if info.note:
                self.log.warning("%s", info.note)
            self._batcher = make_batcher(self._settings, info)
            self._interruptions = Interruptions(self._engine, self._batcher, self._ledger)

    def _find_place(self) -> Routing:
        """Says what this worker is, and listens to what it should serve beside the others, from its first moment."""
        assert self._engine.info is not None
        settings = self._settings
        place = Routing(
            self.connection,
            worker_record(settings, self._engine.info),
            is_serving=lambda: self._engine.info is not None and self._engine_moves(),
            engine_deaths=lambda: self._engine_deaths,
            on_change=self._inbox.wake,
            ttl_s=settings.record_ttl_s,
            renew_s=settings.record_renew_s,
        )
        place.look()
        self._listen_to(place.queues)
        return place

    def _listen_to(self, queues: Sequence[str]) -> None:
        self.log.info("worker %s serves %s", self.name, ", ".join(queues))
        self._intake.pause(STANDBY_QUEUE in queues)
        self._registration.listen_to(queues)

    def _serve(self) -> None:
        while True:
            try:
                self._obey()
                if self._stopping == COLD or (self._stopping and self._ledger.is_empty):
                    return
                self._look_after()
                self._talk_to_redis()  # before the rest, so that the server works while the worker does
                self._hear_engine()
                self._dispatch()
                if self._settings.burst and self._is_drained():
                    self.log.info("the queues are empty and --burst was given: done")
                    return
                self._wait()
                self._backoff_s = 0.0
            except _PASSING as error:
                self._recall()
                if self._stopping:
                    self.log.error("Redis: %s; stopping without it", error)
                    return
                self._back_off(error)

    def _leave(self, registered: bool) -> None:
        """Puts back what is still in flight and says goodbye. Every step is tried, whatever happened to the others."""
        self._lease.stop()
        if self._routing is not None:
            self._routing.stop()
            self._routing.leave()
        self._engine.kill()
        self._inbox.close()
        try:
            self._give_up()
            self._lifecycle.close(patience_s=0.0 if self._stopping == COLD else _FAREWELL_S)
            if registered:
                self._chores.stop()
                self._registration.listen_to(())
                self.register_death()  # type: ignore[no-untyped-call]
                self.unsubscribe()  # type: ignore[no-untyped-call]
        except RedisError as error:
            self.log.warning("could not say goodbye to Redis: %s; leases run out by themselves", error)

    def _give_up(self) -> None:
        """Ends what is to end, and puts back the rest."""
        try:
            if self._ledger.exchange.pending:
                self._ledger.receive()
        except RedisError as error:
            self.log.warning("Redis: %s; what was sent last is sent again", error)
        self._recall()
        if self._ledger.open:
            self.log.info("putting %d unfinished jobs back", len(self._ledger.open))
            self._ledger.note([Returned(job) for job in reversed(self._ledger.open.values())])
        self._ledger.settle(_now())

    # -- the steps of the loop ---------------------------------------------------------------------------------------

    def _hear_engine(self) -> None:
        """Takes what the engine says. If it died, its work is put where it runs again, and another is started."""
        try:
            events = self._engine.receive()
        except EngineDiedError as error:
            self._engine_deaths += 1
            self._deaths_in_a_row += 1
            self.log.error("%s; what it held will run again", error)
            if self._deaths_in_a_row > _MAX_DEATHS_IN_A_ROW:
                raise
            self._restart_engine(suspect=True)
            return
        if events:
            self._deaths_in_a_row = 0
            assert self._batcher is not None
            news = [each for event in events for each in self._batcher.absorb(event, _now())]
            # Each goes to the front of its queue, so the last one first.
            returned = [each for each in reversed(news) if isinstance(each, Returned)]
            self._ledger.note([*(each for each in news if not isinstance(each, Returned)), *returned])

    def _restart_engine(self, *, suspect: bool) -> None:
        assert self._batcher is not None
        self._engine.kill()
        self._ledger.note(self._batcher.engine_died(_now(), suspect=suspect))
        self._engine.start()

    def _talk_to_redis(self) -> None:
        """Sends how jobs ended together with a claim for more, unless the last of these awaits its answer yet."""
        if self._ledger.exchange.pending:
            self._ledger.exchange.check()
            return
        now = _now()
        wanted = None if self._stopping or self._engine.info is None else self._intake.wanted(self._room(), now)
        if wanted is not None or self._ledger.has_news(now):
            self._rest(by_rq=self._ledger.send(wanted, now))

    def _rest(self, *, by_rq: bool) -> None:
        """Shows that there is nothing to do, where that is so."""
        if not self._ledger.held and self._state == WorkerStatus.BUSY:
            self._state = WorkerStatus.IDLE
            if by_rq:  # the script says that the worker is idle again, RQ does not
                self.set_state(WorkerStatus.IDLE)

    def _recall(self) -> None:
        self._ledger.recall()
        self._intake.hang_up()

    def _take_in(self, wanted: Wanted, claim: Claim) -> None:
        assert self._batcher is not None
        assert self._interruptions is not None
        self._intake.learn(wanted, claim, _now())
        if claim.suspended:
            self._show_state(WorkerStatus.SUSPENDED)
        elif claim.jobs:
            self._state = WorkerStatus.BUSY
        elif self._state == WorkerStatus.SUSPENDED:
            self._show_state(WorkerStatus.IDLE)
        for job in claim.jobs:
            if job.id in self._ledger.held:
                # Its lease ran out, it went back to the queue, and it is ours again: the earlier run is over.
                self._interruptions.forget([job.id])
        self._ledger.take(claim.jobs)
        if self._stopping:
            self._ledger.note(Returned(job) for job in reversed(claim.jobs))
            return
        poison = [job for job in claim.jobs if job.deaths_alone >= DEATHS_ALONE]
        self._ledger.note(Failed(job, PoisonedJobError(_POISON)) for job in poison)
        self._batcher.add([job for job in claim.jobs if job not in poison])

    def _abandon(self, job_ids: Sequence[str]) -> None:
        assert self._interruptions is not None
        self._interruptions.abandon(job_ids)

    def _look_after(self) -> None:
        now = _now()
        assert self._routing is not None
        assert self._interruptions is not None
        if list(self._routing.queues) != self.queue_names():
            self._listen_to(self._routing.queues)
        self._chores.run(now)
        for job in self._lease.check():
            if self._ledger.held.get(job.id) is job:
                self.log.warning("job %s: its lease ran out; another worker has it", job.id)
                self._interruptions.forget([job.id])
                self._ledger.forget(job)
        self._interruptions.enforce_timeouts(now)
        if self._interruptions.engine_is_hung(now):
            self._restart_engine(suspect=True)

    def _room(self) -> Room:
        """How many jobs to claim: none while a suspect runs, which has nothing beside it, or waits for that."""
        assert self._batcher is not None
        # A suspect is claimed when nothing is open, and nothing beside it: so it is the first.
        if self._ledger.open and (self._intake.drain or next(iter(self._ledger.open.values())).suspect):
            return Room(0, 0)
        return self._batcher.room()

    def _dispatch(self) -> None:
        if self._engine.info is None:
            return
        assert self._batcher is not None
        self._admit_work(self._batcher)  # the device first: what is ready does not wait for what is not
        self._ledger.note(self._batcher.read(_now()))
        self._admit_work(self._batcher)

    def _admit_work(self, batcher: Batcher) -> None:
        while (work := batcher.next_work(_now())) is not None:
            self._engine.admit(work)

    def _wait(self) -> None:
        """The one place where the loop blocks."""
        assert self._batcher is not None
        now = _now()
        sources: list[Any] = [self._engine]
        deadlines = [now + _IDLE_WAIT_S]
        if self._engine.info is not None and (wakes_at := self._batcher.wakes_at()) is not None:
            deadlines.append(wakes_at)
        if self._ledger.exchange.pending:
            sources.append(self._ledger.exchange)
        elif self._ledger.has_news(now):
            deadlines.append(now)
        if not self._stopping and self._engine.info is not None:
            room = self._room()
            if not self._ledger.exchange.pending and self._intake.wanted(room, now) is not None:
                deadlines.append(now)
            sources += self._intake.bells(room, now)
        for ready in self._inbox.wait(sources, min(deadlines) - now):
            if ready is self._ledger.exchange:
                self._rest(by_rq=self._ledger.receive())
            elif isinstance(ready, Doorbell):
                self._intake.hear(ready)

    def holds(self, execution: Execution) -> bool:
        claimed = self._ledger.held.get(execution.job_id)
        return claimed is not None and claimed.execution_id == execution.id and self._claims.seal(claimed)

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
                case "stop-job" | "stop-execution" if command.job_id in self._ledger.open:
                    self.log.info("job %s: stopped by its user", command.job_id)
                    assert self._interruptions is not None
                    self._interruptions.interrupt(Stopped(self._ledger.open[command.job_id]))
                case routing.LOOK:
                    if self._routing is not None:
                        self._routing.look()
                case "kill-horse" if self._batcher is not None:
                    self._restart_engine(suspect=False)
                case other:
                    self.log.warning("ignoring the command %r for job %r", other, command.job_id)

    def _stop(self, manner: str) -> None:
        """Warm: what the engine has begun is finished, the rest goes back. Cold: everything goes back at once."""
        self._stopping = manner
        self.log.info("stopping (%s)%s", manner, "; signal again to stop at once" if manner == WARM else "")
        if self._routing is not None:
            self._routing.leave()
        if manner == WARM and self._batcher is not None and self._interruptions is not None:
            for job in reversed(list(self._ledger.open.values())):
                if not self._batcher.has_begun(job.id):
                    self._interruptions.forget([job.id])
                    self._ledger.note([Returned(job)])

    # -- small things ------------------------------------------------------------------------------------------------

    def _show_state(self, state: WorkerStatus) -> None:
        if self._state != state:
            self.set_state(state)

    def _is_drained(self) -> bool:
        return self._ledger.is_empty and self._engine.info is not None and self._intake.is_dry(_now())

    def _engine_moves(self) -> bool:
        return self._engine.silent_s() < _HUNG_S

    def _back_off(self, error: RedisError) -> None:
        self._backoff_s = min(_MAX_BACKOFF_S, self._backoff_s * 2 or 0.1)
        self.log.error("Redis: %s; trying again in %.1f s", error, self._backoff_s)
        self._inbox.wait([], self._backoff_s)


def _now() -> float:
    return time.monotonic()
