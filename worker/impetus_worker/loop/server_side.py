"""One server's side of the loop: its jobs from claim to ending, and what the threads that talk to it say.

A worker of several servers has one of these for each, and one engine for all. No method waits, but for `farewell`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from impetus_producer.contract import STANDBY_QUEUE
from impetus_producer.shown import without_password

from .. import inbox
from ..companions.crew import Crew
from ..companions.link import PASSING
from ..errors import PoisonedJobError
from ..fleet.routing import Routing
from ..leases.claims import DEATHS_ALONE, Claims
from ..leases.intake import Intake
from ..leases.ledger import Ledger
from ..leases.outcomes import Failed, Returned, Stopped
from ..roles import worker_record
from .stopping import FAREWELL_S, Silence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from ..awake import AwakeClock
    from ..batches.batcher import Room
    from ..host.conditions import Watch
    from ..leases.claims import Claim, ClaimedJob
    from ..leases.intake import Wanted
    from ..leases.ledgers import Ledgers
    from ..leases.outcomes import Outcome
    from ..observing.observer import Observer
    from ..settings import WorkerSettings
    from .engine_side import EngineSide
    from .stopping import Stopping

IDLE_WAIT_S = 1.0
_MAX_RQ_WAITING = (256, 4096)
"""With so many runs waiting to be ended by RQ's means no more bulk is claimed, with so many nothing."""
_POISON = f"{DEATHS_ALONE} workers died with this job running, and nothing beside it"

_log = logging.getLogger(__name__)


class ServerSide:
    """`number` tells the server from the worker's others. `tell` is how its threads talk to the loop, which hands their
    facts to `hear`. `jobs`: the ledgers of all servers, to which this one's is added.
    """

    def __init__(
        self,
        number: int,
        settings: WorkerSettings,
        connect: Callable[[float], Redis],
        engine: EngineSide,
        jobs: Ledgers,
        observer: Observer,
        stopping: Stopping,
        now: AwakeClock,
        tell: Callable[[object], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._jobs = jobs
        self._observer = observer
        self._stopping = stopping
        self._now = now
        self._tell = tell
        self._silence = Silence(stopping, now)
        claims = Claims(settings.name, settings.lease_s, number)
        several = len(settings.redis_urls) > 1
        self._called = without_password(settings.redis_urls[number]) if several else "Redis"
        self._crew = Crew(settings, connect, claims, tell, engine.calling, self._called)
        self._ledger = Ledger(
            claims,
            settings.name,
            self._crew.rq_endings,
            self._crew.courier.send,
            on_claim=self._take_in,
            on_abandoned=engine.abandon,
            on_end=self._show_ended,
        )
        jobs.add(self._ledger)
        self._intake = Intake({queue: bell.listen for queue, bell in self._crew.bells.items()})
        self._intake.pause(True)  # until it is known which queues are this worker's
        self._routing: Routing | None = None
        self._unlooked: set[str] = set()
        """Housekeeping that has not yet looked for jobs to put on the queues."""
        self._looked_again = False
        """Whether a burst has looked for jobs once more since it had any."""
        self._suspended = False
        self._told_to_end: set[str] = set()
        """Tokens of runs that were interrupted for a wish, which is told again until they have ended."""
        self._send_from = 0.0

    # -- from birth to death -----------------------------------------------------------------------------------------

    def open_for_work(self, moves: Callable[[], bool], conditions: Watch) -> None:
        """Says what this worker is, and starts the threads. `moves`: whether the loop turns; asked in a thread."""
        assert self._engine.info is not None
        self._routing = Routing(
            worker_record(self._settings, self._engine.info),
            is_serving=lambda: self._engine.info is not None and moves(),
            engine_deaths=lambda: self._engine.deaths,
            cost=lambda: self._engine.batcher.cost,
            memory=lambda: self._engine.memory,
            conditions=conditions,
            tell=self._tell,
            ttl_s=self._settings.record_ttl_s,
        )
        self._unlooked = {each.name for each in self._crew.start(self._routing, self._held, moves)}

    def stand_down(self) -> None:
        """Says to the others that it takes nothing any more."""
        if self._routing is not None:
            self._routing.stand_down()
            self._crew.hurry()

    def hurry(self) -> None:
        """Has leases, record and recovery seen to at once."""
        self._crew.hurry()

    def look(self) -> None:
        """Gives a server up that does not answer, where the worker stops."""
        self._silence.look()

    @property
    def is_done(self) -> bool:
        """Whether nothing keeps a worker that stops."""
        return self._ledger.is_empty or self._silence.given_up

    def stop_threads(self, *, cold: bool) -> None:
        """Ends its threads, once what they do is done or its time is over."""
        if self._routing is None:
            return
        if self._silence.given_up:
            self._crew.stop(webhooks_s=0.0, patience_s=0.0)
        else:
            self._crew.stop(webhooks_s=0.0 if cold else FAREWELL_S, patience_s=FAREWELL_S)

    def farewell(self) -> None:
        """Puts back what is still in flight and says goodbye, each whatever became of the other."""
        if self._routing is None:
            return
        if self._silence.given_up:
            _log.warning("nothing was put back: the leases of what it held, and its record, run out by themselves")
            return
        link = self._crew.link("farewell")
        try:
            self._ledger.recall_all()
            if unfinished := self._ledger.unfinished():
                _log.info("putting %d unfinished jobs back", len(unfinished))
                self._ledger.note([Returned(job) for job in unfinished])
            self._ledger.settle(link.connection, self._now())
        except PASSING as error:
            _log.warning("could not put jobs back: %s: %s; their leases run out by themselves", self._called, error)
        try:
            self._routing.leave(link.connection)
        except PASSING as error:
            _log.warning("could not say goodbye to %s: %s; the worker's record runs out by itself", self._called, error)
        link.close()

    # -- what its threads say ----------------------------------------------------------------------------------------

    def hear(self, fact: object) -> None:
        match fact:
            case inbox.Answered(answers):
                if self._ledger.receive(answers):
                    self._silence.answered()
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
                _log.info("worker %s serves %s", self._settings.name, ", ".join(queues))
                self._intake.pause(STANDBY_QUEUE in queues)
            case inbox.Shared(shares):
                self._intake.share(shares)

    def _hear_of_leases(self, renewed: inbox.Renewed) -> None:
        lost = set(renewed.renewal.lost)
        for job in renewed.jobs:
            if job.id in lost and self._ledger.open.get(job.id) is job:
                _log.warning("job %s: this run of it is over, another counts by now", job.id)
                self._engine.forget([job.id])
                self._ledger.forget(job)
                self._observer.lost_lease(job)
        for job_id in renewed.renewal.cancelled:
            self.cancel(job_id)

    def cancel(self, job_id: str) -> None:
        """Stops a run of this server's, as somebody wishes."""
        job = self._ledger.open.get(job_id)
        if job is None or job.token in self._told_to_end:
            return
        _log.info("job %s: stopped by its user", job_id)
        self._told_to_end = {job.token} | (self._told_to_end & {each.token for each in self._ledger.open.values()})
        self._engine.interrupt(Stopped(job))

    def listen(self) -> None:
        """Has its bells listen to the queues that were found empty."""
        self._intake.listen()

    # -- what is sent to it ------------------------------------------------------------------------------------------

    @property
    def coming(self) -> int:
        """How many jobs are asked for, and not yet here."""
        return self._ledger.wanted

    @property
    def holds_any(self) -> bool:
        return bool(self._ledger.held)

    def wakes_at(self, room: Callable[[], Room | None], now: float) -> float | None:
        """When there is something to send or to claim though nothing is heard."""
        times = [at for at in (self._intake.wakes_at(now),) if at is not None]
        if self._is_due(self._wanted(room, now), now):
            times.append(self._send_from)
        return min(times, default=None)

    def send(self, room: Callable[[], Room | None]) -> bool:
        """Sends how jobs ended together with a claim for more, where that is due; whether it claims.

        `room`: for how many jobs the engine has room; None where none are to be claimed.
        """
        now = self._now()
        wanted = self._wanted(room, now)
        if now < self._send_from or not self._is_due(wanted, now):
            return False
        self._ledger.send(wanted, now)
        self._silence.asked()
        return wanted is not None

    def _is_due(self, wanted: Wanted | None, now: float) -> bool:
        """Whether to send: a first exchange at once, a second beside it only if it is worth it."""
        match self._ledger.under_way:
            case 0:
                return wanted is not None or self._ledger.has_news(now)
            case 1 if not self._ledger.is_relaying:
                return wanted is not None or self._ledger.is_pressing
            case _:
                return False

    def _wanted(self, room: Callable[[], Room | None], now: float) -> Wanted | None:
        under_way = self._ledger.under_way
        if now < self._send_from or under_way > 1 or (under_way and not self._intake.has_backlog):
            return None
        if self._intake.is_dry(now):  # asked first, because it costs less than to count the room
            return None
        bulk, nothing = _MAX_RQ_WAITING
        waiting = self._ledger.rq_waiting
        free = room() if waiting <= nothing else None
        if free is None:
            return None
        return self._intake.wanted(free if waiting <= bulk else replace(free, bulk=0, ahead=0), now)

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
            elif self._jobs.is_held_elsewhere(job):
                # The engine's side goes by ids: this one's turn is when its namesake has ended.
                self._ledger.note([Returned(job)])
                self._send_from = now + IDLE_WAIT_S
            else:
                fit.append(job)
        self._engine.batcher.add(fit)

    def _show_ended(self, outcomes: Sequence[Outcome]) -> None:
        now = self._now()
        for outcome in outcomes:
            self._observer.ended(outcome, now)

    def _show(self, state: str) -> None:
        if self._routing is not None:
            self._routing.show(state)
            self._crew.hurry()

    # -- small things ------------------------------------------------------------------------------------------------

    def _held(self) -> list[ClaimedJob]:
        """Asked by housekeeping, in its own thread."""
        while True:
            try:
                return list(self._ledger.held.values())
            except RuntimeError:  # the loop changed it meanwhile
                continue

    def is_drained(self) -> bool:
        """Whether there was nothing left to do when it looked, twice."""
        if self._unlooked or not self._ledger.is_empty or not self._intake.is_dry(self._now()):
            return False
        if self._looked_again:
            return True
        # What ended last may have put others on the queues, and a bell takes a moment.
        self._looked_again = True
        self._intake.look_again()
        return False
