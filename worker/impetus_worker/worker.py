"""The one loop: claim, dispatch, absorb, send. One thread drives it, and it waits for facts in its inbox alone.

It is an RQ worker to everyone who looks (`rq info`, stop-job, `rq suspend`), and runs jobs of its two names only.
While the engine works on batch k, the loop ends k-1 and prepares k+1. Whatever may wait for others has a thread of its
own, and hands over what came of it: the courier (claims and endings), the doorbells, housekeeping, RQ's endings, RQ's
commands, the process that reads long jobs, and two at the engine's pipe.

Each server has threads of its own, and a `ServerSide` here. There is one engine for all, and who claimed last goes last
next time.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from . import inbox
from .awake import AwakeClock, Pulse
from .batches.batcher import Room
from .errors import ConfigurationError
from .fleet.routing import LOOK
from .host.conditions import Watch
from .host.power import open_power
from .host.supervisor import EXIT_SHUTDOWN
from .leases.ledgers import Ledgers
from .loop.engine_side import EngineSide
from .loop.server_side import IDLE_WAIT_S, ServerSide
from .loop.stopping import Stopping
from .observing.observers import open_observers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from .settings import WorkerSettings

_HANDOVER_S = 10.0
"""Before the machine falls asleep nothing is claimed for so long, which the sleep itself does not count to."""
_STALLED_S = 300.0
"""A loop that has not turned for so long is stuck."""

_log = logging.getLogger(__name__)


class QueueWorker:
    """A worker of one role. `run()` serves until it is told to stop, and returns the exit status.

    `connects`: for each server, what makes a client of it whose every wait ends after so many seconds, and that tries
    nothing twice. `lifeline`: a file descriptor that is readable, or closed, when the worker should stop.
    """

    def __init__(
        self, settings: WorkerSettings, connects: Sequence[Callable[[float], Redis]], *, lifeline: int | None = None
    ) -> None:
        self._settings = settings
        self.name = settings.name
        self._lifeline = lifeline
        self._inbox = inbox.Inbox()
        self._now = AwakeClock()
        self._power = open_power(settings)
        self._conditions = Watch(settings.prefer, settings.bulk_from_charge)
        self._observer = open_observers(settings.role, settings.name)
        self._stopping = Stopping(self._now)
        jobs = Ledgers()
        self._engine = EngineSide(settings, jobs, self._observer, self._stopping, self._now, self._inbox.tell)
        self._servers = [
            ServerSide(
                number, settings, connect, self._engine, jobs, self._observer, self._stopping, self._now,
                partial(self._tell_of, number),
            )
            for number, connect in enumerate(connects)
        ]  # fmt: skip
        self._turns = deque(self._servers)
        """Who may claim next goes first."""
        self._exit_status = 0
        self._claim_from = 0.0
        self._pulse = Pulse()

    def _tell_of(self, server: int, fact: object) -> None:
        self._inbox.tell(inbox.FromServer(server, fact))

    # -- from birth to death -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Loads the model, then serves. Returns 0 when it was told to stop, or in burst mode when all is done;
        `EXIT_SHUTDOWN` when RQ's shutdown command ended it.

        Raises `ConfigurationError` when the model cannot be loaded as told, or a server refuses the worker.
        """
        self._inbox.hear_signals()
        if self._lifeline is not None:
            self._inbox.watch(self._lifeline)
        try:
            self._engine.start()
            while not self._engine.is_open and not self._stopping:
                self._absorb(self._inbox.wait(IDLE_WAIT_S))
                self._engine.look_after_loading()
            if not self._stopping:
                self._open_for_work()
                self._serve()
        finally:
            self._leave()
            self._observer.close()
        return self._exit_status

    def _open_for_work(self) -> None:
        """A worker claims nothing before its backend has earned it."""
        # What was imported and opened stays: to look through all of it for garbage again holds the loop up for 70 ms.
        gc.collect()
        gc.freeze()
        for server in self._servers:
            server.open_for_work(self._moves, self._conditions)
        self._power.on_sleep(lambda: self._inbox.tell(inbox.Command(inbox.HANDOVER)))

    def _serve(self) -> None:
        while True:
            self._absorb(self._inbox.wait(self._wait_s()))
            self._pulse.beat()
            if self._stopping.cold or (self._stopping and all(server.is_done for server in self._servers)):
                return
            self._look_after()
            self._send()  # before the rest, so that the server works while the worker does
            self._engine.dispatch()
            for server in self._servers:
                server.listen()  # last, because the bells' threads take turns with this one
            self._power.working(any(server.holds_any for server in self._servers))
            if self._settings.burst and self._is_drained():
                _log.info("the queues are empty and --burst was given: done")
                return

    def _wait_s(self) -> float:
        """Until when there is nothing to do, if nothing is heard."""
        now = self._now()
        deadlines = [now + IDLE_WAIT_S]
        if self._engine.info is not None and (at := self._engine.batcher.wakes_at()) is not None:
            deadlines.append(at)
        deadlines += [at for server in self._servers if (at := server.wakes_at(self._room, now)) is not None]
        return min(deadlines) - now

    def _leave(self) -> None:
        """Puts back what is still in flight and says goodbye. Every step is tried, whatever happened to the others."""
        self._engine.stop()
        self._power.close()
        for server in self._servers:
            server.stop_threads(cold=self._stopping.cold)
        for fact in self._inbox.wait(0):
            if isinstance(fact, inbox.FromServer) and isinstance(fact.said, inbox.Answered | inbox.EndedByRq):
                self._absorb([fact])
        for server in self._servers:
            server.farewell()

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
                    | inbox.EngineHas()
                ):
                    self._engine.hear(fact)
                case inbox.ReadElsewhere():
                    self._engine.take_back(fact)
                case inbox.Command():
                    self._obey(fact)
                case inbox.FromServer(number, inbox.Command() as command):
                    self._obey_remote(self._servers[number], command)
                case inbox.Broken(party, error) | inbox.FromServer(_, inbox.Broken(party, error)):
                    if isinstance(error, ConfigurationError):
                        raise error
                    raise RuntimeError(f"the thread {party!r} ended") from error
                case inbox.FromServer(number, said):
                    self._servers[number].hear(said)

    # -- the steps of the loop ---------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        now, slept_s = self._now(), self._now.slept_s()
        if slept_s > 0:
            _log.warning("this process did not run for %.0f s", slept_s)
        for server in self._servers:
            server.look()
        self._engine.look_after(now, slept_s)
        self._engine.spare(self._conditions.has_to_spare)
        self._observer.look(now, self._engine.batcher.begun, self._engine.open_jobs)

    def _room(self) -> Room | None:
        """For how many more jobs the engine has room; None where none are to be claimed."""
        if self._stopping or self._engine.info is None or self._now() < self._claim_from:
            return None
        room, coming = self._engine.batcher.room(), sum(server.coming for server in self._servers)
        bulk_too = self._conditions.against_bulk is None
        return Room(
            interactive=max(0, room.interactive - coming),
            bulk=max(0, room.bulk - coming) if bulk_too else 0,
            ahead=max(0, room.ahead - coming) if bulk_too else 0,
            in_line=max(0, room.in_line - coming),
            held=room.held,
        )

    def _send(self) -> None:
        """To each server how its jobs ended, and what is wanted of it."""
        for server in list(self._turns):
            if server.send(self._room):
                self._turns.remove(server)
                self._turns.append(server)

    # -- being told --------------------------------------------------------------------------------------------------

    def _obey(self, command: inbox.Command) -> None:
        match command.name:
            case inbox.SHUTDOWN:
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

    def _obey_remote(self, server: ServerSide, command: inbox.Command) -> None:
        """What came through Redis and not from this machine."""
        match command.name:
            case inbox.SHUTDOWN:
                self._exit_status = EXIT_SHUTDOWN
                self._stop(cold=bool(self._stopping))
            case "stop-job" | "stop-execution":
                server.cancel(command.job_id)
            case name if name == LOOK:
                server.hurry()
            case "kill-horse":
                self._engine.restart(suspect=False)
            case other:
                _log.warning("ignoring the command %r for job %r", other, command.job_id)

    def _stop(self, *, cold: bool) -> None:
        self._stopping.begin(cold=cold)
        if not cold:
            self._engine.hand_over()
            for server in self._servers:
                server.stand_down()

    # -- small things ------------------------------------------------------------------------------------------------

    def _moves(self) -> bool:
        """Whether the loop turns, asked in threads. A worker whose loop hangs keeps no lease, and serves nothing."""
        return self._pulse.silent_s() < _STALLED_S

    def _is_drained(self) -> bool:
        drained = [server.is_drained() for server in self._servers]  # all are asked, for each then looks once more
        return self._engine.info is not None and all(drained)
