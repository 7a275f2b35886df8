"""The one loop: claim, dispatch, absorb, send. One thread drives it, and it waits for facts in its inbox alone.

It is an RQ worker to everyone who looks (`rq info`, stop-job, `rq suspend`), and runs jobs of its two names only.
While the engine works on batch k, the loop ends k-1 and prepares k+1. Whatever may wait for others has a thread of its
own, and hands over what came of it: the courier (claims and endings), the doorbells, housekeeping, RQ's endings, RQ's
commands, the process that reads long jobs, and two at the engine's pipe.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from impetus_producer.contract import STANDBY_QUEUE

from . import inbox
from .awake import AwakeClock, Pulse
from .batches.batcher import Room
from .batches.planning.quarantine import DEATHS_ALONE
from .companions.crew import Crew
from .companions.link import PASSING
from .errors import ConfigurationError, PoisonedJobError
from .fleet.routing import LOOK, Routing
from .host.conditions import Watch
from .host.power import open_power
from .host.supervisor import EXIT_SHUTDOWN
from .leases.claims import Claims
from .leases.intake import Intake
from .leases.ledger import Ledger
from .leases.outcomes import Failed, Returned, Stopped
from .loop.engine_side import EngineSide
from .loop.stopping import FAREWELL_S, Stopping
from .observing.observers import open_observers
from .roles import worker_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from .leases.claims import Claim, ClaimedJob
    from .leases.intake import Wanted
    from .settings import WorkerSettings

IDLE_WAIT_S = 1.0
_HANDOVER_S = 10.0
"""Before the machine falls asleep nothing is claimed for so long, which the sleep itself does not count to."""
_STALLED_S = 300.0
"""A loop that has not turned for so long is stuck."""
_MAX_RQ_WAITING = (256, 4096)
"""With so many runs waiting to be ended by RQ's means no more bulk is claimed, with so many nothing."""

_POISON = f"{DEATHS_ALONE} workers died with this job running, and nothing beside it"

_log = logging.getLogger(__name__)


class QueueWorker:
    """A worker of one role. `run()` serves until it is told to stop, and returns the exit status.

    `connect`: makes a client of the server whose every wait ends after so many seconds, and that tries nothing twice.
    `lifeline`: a file descriptor that is readable, or closed, when the worker should stop.
    """

    def __init__(
        self, settings: WorkerSettings, connect: Callable[[float], Redis], *, lifeline: int | None = None
    ) -> None:
        self._settings = settings
        self.name = settings.name
        self._lifeline = lifeline
        self._inbox = inbox.Inbox()
        self._now = AwakeClock()
        self._claims = Claims(settings.name, settings.lease_s)
        self._crew = Crew(settings, connect, self._claims, self._inbox.tell)
        self._power = open_power(settings)
        self._conditions = Watch(settings.prefer, settings.bulk_from_charge)
        self._observer = open_observers(settings.role, settings.name)
        self._ledger = Ledger(
            self._claims,
            self.name,
            self._crew.rq_endings,
            self._crew.courier.send,
            on_claim=self._take_in,
            on_abandoned=lambda job_ids: self._engine.abandon(job_ids),
            on_end=lambda outcome: self._observer.ended(outcome, self._now()),
        )
        self._intake = Intake({queue: bell.listen for queue, bell in self._crew.bells.items()})
        self._intake.pause(True)  # until it is known which queues are this worker's
        self._routing: Routing | None = None
        self._stopping = Stopping(self._now)
        self._engine = EngineSide(settings, self._ledger, self._observer, self._stopping, self._now, self._inbox.tell)
        self._exit_status = 0
        self._unlooked: set[str] = set()
        """Housekeeping that has not yet looked for jobs to put on the queues."""
        self._looked_again = False
        """Whether a burst has looked for jobs once more since it had any."""
        self._suspended = False
        self._told_to_end: set[str] = set()
        """Tokens of runs that were interrupted for a wish, which is told again until they have ended."""
        self._send_from = 0.0
        self._claim_from = 0.0
        self._pulse = Pulse()

    # -- from birth to death -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Loads the model, then serves. Returns 0 when it was told to stop, or in burst mode when all is done;
        `EXIT_SHUTDOWN` when RQ's shutdown command ended it.

        Raises `ConfigurationError` when the model cannot be loaded as told, or the server refuses the worker.
        """
        self._inbox.hear_signals()
        if self._lifeline is not None:
            self._inbox.watch(self._lifeline)
        try:
            self._engine.start()
            while not self._engine.is_open and not self._stopping:
                self._absorb(self._inbox.wait(IDLE_WAIT_S))
            if not self._stopping:
                self._open_for_work()
                self._serve()
        finally:
            self._leave()
            self._observer.close()
        return self._exit_status

    def _open_for_work(self) -> None:
        """A worker claims nothing before its backend has earned it. It says what it is, and its threads start."""
        assert self._engine.info is not None
        settings = self._settings
        self._routing = Routing(
            worker_record(settings, self._engine.info),
            is_serving=lambda: self._engine.info is not None and self._moves(),
            engine_deaths=lambda: self._engine.deaths,
            cost=lambda: self._engine.batcher.cost,
            conditions=self._conditions,
            tell=self._inbox.tell,
            ttl_s=settings.record_ttl_s,
        )
        self._unlooked = {each.name for each in self._crew.start(self._routing, self._held, self._moves)}
        self._power.on_sleep(lambda: self._inbox.tell(inbox.Command(inbox.HANDOVER)))

    def _listen_to(self, queues: Sequence[str]) -> None:
        _log.info("worker %s serves %s", self.name, ", ".join(queues))
        self._intake.pause(STANDBY_QUEUE in queues)

    def _serve(self) -> None:
        while True:
            self._absorb(self._inbox.wait(self._wait_s()))
            self._pulse.beat()
            if self._stopping.cold or (self._stopping and self._ledger.is_empty):
                return
            self._look_after()
            self._send()  # before the rest, so that the server works while the worker does
            self._engine.dispatch()
            self._power.working(bool(self._ledger.held))
            if self._settings.burst and self._is_drained():
                _log.info("the queues are empty and --burst was given: done")
                return

    def _wait_s(self) -> float:
        """Until when there is nothing to do, if nothing is heard."""
        now = self._now()
        deadlines = [now + IDLE_WAIT_S]
        if self._engine.info is not None and (at := self._engine.batcher.wakes_at()) is not None:
            deadlines.append(at)
        if self._has_to_send(now):
            deadlines.append(self._send_from)
        if (at := self._intake.wakes_at(now)) is not None:
            deadlines.append(at)
        return min(deadlines) - now

    def _leave(self) -> None:
        """Puts back what is still in flight and says goodbye. Every step is tried, whatever happened to the others."""
        self._engine.stop()
        self._power.close()
        if self._routing is None:
            return
        if self._stopping.without_server:
            self._crew.stop(webhooks_s=0.0, patience_s=0.0)
            _log.warning("nothing was put back: the leases of what it held, and its record, run out by themselves")
            return
        self._crew.stop(webhooks_s=0.0 if self._stopping.cold else FAREWELL_S, patience_s=FAREWELL_S)
        link = self._crew.link("farewell")
        try:
            facts = self._inbox.wait(0)
            self._absorb([fact for fact in facts if isinstance(fact, inbox.Answered | inbox.EndedByRq)])
            self._ledger.recall_all()
            if unfinished := self._ledger.unfinished():
                _log.info("putting %d unfinished jobs back", len(unfinished))
                self._ledger.note([Returned(job) for job in unfinished])
            self._ledger.settle(link.connection, self._now())
        except PASSING as error:
            _log.warning("could not put jobs back: %s; their leases run out by themselves", error)
        try:
            self._routing.leave(link.connection)
        except PASSING as error:
            _log.warning("could not say goodbye to Redis: %s; the worker's record runs out by itself", error)
        link.close()

    # -- what the loop is told -----------------------------------------------------------------------------------------

    def _absorb(self, facts: Sequence[object]) -> None:
        for fact in facts:
            match fact:
                case (
                    inbox.EngineSaid()
                    | inbox.EngineEnded()
                    | inbox.EngineLoaded()
                    | inbox.EngineTries()
                    | inbox.EngineRefused()
                ):
                    self._engine.hear(fact)
                case inbox.ReadElsewhere():
                    self._engine.take_back(fact)
                case inbox.Answered(answers):
                    if self._ledger.receive(answers):
                        self._stopping.answered()
                    else:
                        self._send_from = self._now() + IDLE_WAIT_S
                case inbox.Unanswered(retry_in_s):
                    self._ledger.recall()
                    self._send_from = self._now() + retry_in_s
                case inbox.Rang(queue):
                    self._intake.hear(queue)
                case inbox.EndedByRq(job):
                    self._ledger.forget(job)
                case inbox.Renewed():
                    self._hear_of_leases(fact)
                case inbox.LookedRound(who):
                    self._unlooked.discard(who)
                    self._intake.look_again()
                case inbox.Rerouted(queues):
                    self._listen_to(queues)
                case inbox.Shared(shares):
                    self._intake.share(shares)
                case inbox.Command():
                    self._obey(fact)
                case inbox.Broken(party, error):
                    if isinstance(error, ConfigurationError):
                        raise error
                    raise RuntimeError(f"the thread {party!r} ended") from error

    def _hear_of_leases(self, renewed: inbox.Renewed) -> None:
        lost = set(renewed.renewal.lost)
        for job in renewed.jobs:
            if job.id in lost and self._ledger.open.get(job.id) is job:
                _log.warning("job %s: this run of it is over, another counts by now", job.id)
                self._engine.forget([job.id])
                self._ledger.forget(job)
                self._observer.lost_lease(job)
        for job_id in renewed.renewal.cancelled:
            self._cancel(job_id)

    def _cancel(self, job_id: str) -> None:
        job = self._ledger.open.get(job_id)
        if job is None or job.token in self._told_to_end:
            return
        _log.info("job %s: stopped by its user", job_id)
        self._told_to_end = {job.token} | (self._told_to_end & {each.token for each in self._ledger.open.values()})
        self._engine.interrupt(Stopped(job))

    # -- the steps of the loop ---------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        now, slept_s = self._now(), self._now.slept_s()
        if slept_s > 0:
            _log.warning("this process did not run for %.0f s", slept_s)
        self._stopping.look()
        self._engine.look_after(now, slept_s)
        self._observer.look(now, self._engine.batcher.begun, len(self._ledger.open))

    def _wanted(self, now: float) -> Wanted | None:
        if self._stopping or self._engine.info is None or now < max(self._send_from, self._claim_from):
            return None
        if self._ledger.under_way and not self._intake.has_backlog:
            return None
        return self._intake.wanted(self._room(), now)

    def _room(self) -> Room:
        room, waiting = self._engine.batcher.room(), self._ledger.rq_waiting
        bulk, nothing = _MAX_RQ_WAITING
        coming = self._ledger.wanted
        no_bulk = waiting > bulk or self._conditions.against_bulk is not None
        return Room(
            0 if waiting > nothing else max(0, room.interactive - coming),
            0 if no_bulk else max(0, room.bulk - coming),
            0 if no_bulk else max(0, room.ahead - coming),
            held=room.held,
        )

    def _has_to_send(self, now: float) -> bool:
        """Whether an exchange is due: the first at once, a second beside it only if it is worth it."""
        match self._ledger.under_way:
            case 0:
                return self._ledger.has_news(now) or self._wanted(now) is not None
            case 1:
                return self._ledger.many_ended or (self._intake.has_backlog and self._wanted(now) is not None)
            case _:
                return False

    def _send(self) -> None:
        """Sends how jobs ended together with a claim for more."""
        now = self._now()
        if now >= self._send_from and self._has_to_send(now):
            self._ledger.send(self._wanted(now), now)
            self._stopping.asked()

    def _take_in(self, wanted: Wanted, claim: Claim) -> None:
        """What a claim brought."""
        now = self._now()
        self._intake.learn(wanted, claim, now)
        if claim.suspended != self._suspended:
            self._suspended = claim.suspended
            self._show("suspended" if claim.suspended else "busy" if claim.jobs else "idle")
        again = [job.id for job in claim.jobs if job.id in self._ledger.held]
        if again:  # it went back to the queue and is ours again: the earlier run is over
            self._engine.forget(again)
        self._ledger.take(claim.jobs, now)
        self._observer.took(claim.jobs, now)
        self._looked_again = self._looked_again and not claim.jobs
        if self._stopping:
            self._ledger.note(Returned(job) for job in claim.jobs)
            return
        fit: list[ClaimedJob] = []
        for job in claim.jobs:
            if job.cancelled:
                self._ledger.note([Stopped(job)])
            elif job.deaths_alone >= DEATHS_ALONE:
                self._ledger.note([Failed(job, PoisonedJobError(_POISON))])
            else:
                fit.append(job)
        self._engine.batcher.add(fit)

    def _show(self, state: str) -> None:
        if self._routing is not None:
            self._routing.show(state)
            self._crew.hurry()

    # -- being told --------------------------------------------------------------------------------------------------

    def _obey(self, command: inbox.Command) -> None:
        match command.name:
            case inbox.SHUTDOWN:
                self._exit_status = EXIT_SHUTDOWN if command.remote else 0
                self._stop(cold=bool(self._stopping))
            case inbox.SUPERVISOR_GONE:
                if not self._stopping:
                    self._stop(cold=False)
            case inbox.HANDOVER:
                _log.info("the machine is about to sleep: what has not begun goes back to its queue")
                self._claim_from = self._now() + _HANDOVER_S
                self._engine.hand_over()
            case inbox.BEGIN_ANEW:
                self._exit_status = EXIT_SHUTDOWN
                self._stop(cold=True)
            case "stop-job" | "stop-execution":
                self._cancel(command.job_id)
            case name if name == LOOK:
                self._crew.hurry()
            case "kill-horse":
                self._engine.restart(suspect=False)
            case other:
                _log.warning("ignoring the command %r for job %r", other, command.job_id)

    def _stop(self, *, cold: bool) -> None:
        self._stopping.begin(cold=cold)
        if not cold:
            self._engine.hand_over()
            if self._routing is not None:
                self._routing.stand_down()
                self._crew.hurry()

    # -- what housekeeping asks, in its own thread -------------------------------------------------------------------

    def _held(self) -> list[ClaimedJob]:
        while True:
            try:
                return list(self._ledger.held.values())
            except RuntimeError:  # the loop changed it meanwhile
                continue

    def _moves(self) -> bool:
        """Whether the loop turns. A worker whose loop hangs keeps no lease, and serves nothing."""
        return self._pulse.silent_s() < _STALLED_S

    # -- small things ------------------------------------------------------------------------------------------------

    def _is_drained(self) -> bool:
        loaded = self._engine.info is not None and not self._unlooked
        if not (loaded and self._ledger.is_empty and self._intake.is_dry(self._now())):
            return False
        if self._looked_again:
            return True
        # What ended last may have put others on the queues, and a bell takes a moment.
        self._looked_again = True
        self._intake.look_again()
        return False
