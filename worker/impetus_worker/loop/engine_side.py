"""The engine's side of the loop: what it is given, what it says, how it lives and dies. No method waits.

The other is `server_side`, where the jobs are; here they are batches of an engine process.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING

from .. import inbox
from ..errors import ConfigurationError, EngineDiedError
from ..host.begun import BegunNote
from ..host.engine_lives import LOADING_PATIENCE_S, SLOW_LOADING_S, EngineLives
from ..host.engine_process import EngineProcess
from ..host.reading_process import ReadingProcess
from ..leases.outcomes import Returned
from ..roles import engine_config, make_batcher
from .interruptions import Interruptions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence, Set
    from contextlib import AbstractContextManager

    from impetus_backends.machine.footprint import Use
    from impetus_backends.protocol import EngineInfo, Event

    from ..awake import AwakeClock
    from ..batches.batcher import Batcher
    from ..leases.claims import ClaimedJob
    from ..leases.ledgers import Ledgers
    from ..leases.outcomes import Failed, Stopped
    from ..observing.observer import Observer
    from ..settings import WorkerSettings
    from .stopping import Stopping

_log = logging.getLogger(__name__)


class EngineSide:
    """`jobs` is told what comes of them, and `tell` is how the engine's threads talk to the loop.

    Before the first engine has loaded there is no batch to speak of: `is_open` is false, and it holds nothing.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        jobs: Ledgers,
        observer: Observer,
        stopping: Stopping,
        now: AwakeClock,
        tell: Callable[[object], None],
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._observer = observer
        self._stopping = stopping
        self._now = now
        self._tell = tell
        self._process = EngineProcess(tell, now)
        self._lives = EngineLives(engine_config(settings))
        self._begun = None if settings.begun_fd is None else BegunNote.open(settings.begun_fd)
        self._opened: tuple[Batcher, Interruptions, ReadingProcess] | None = None
        self.memory: Use | None = None
        """What the engine's process has, as it said last."""
        self._told_spare = False
        self._told_slow = False

    # -- its life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._process.start(self._lives.config)
        self._told_spare = False
        self.memory = None

    @property
    def is_open(self) -> bool:
        """Whether an engine has loaded once."""
        return self._opened is not None

    @property
    def info(self) -> EngineInfo | None:
        """What is loaded now; None while none is."""
        return self._process.info

    @property
    def open_jobs(self) -> int:
        """Of how many jobs it is not known yet how they end."""
        return self._jobs.open_jobs

    @property
    def deaths(self) -> int:
        return self._lives.deaths

    @property
    def batcher(self) -> Batcher:
        assert self._opened is not None
        return self._opened[0]

    @property
    def _interruptions(self) -> Interruptions:
        assert self._opened is not None
        return self._opened[1]

    def restart(self, *, suspect: bool) -> None:
        """Puts its work where it runs again, and starts another. `suspect`: what it had begun may have ended it."""
        self._observer.engine_died()
        if self.is_open:
            self._jobs.note(self.batcher.engine_died(self._now(), suspect=suspect))
        if self._stopping:  # what is left is not worth a model loaded anew
            self._process.kill()
            self._give_back(list(self._jobs.open.values()))
        else:
            self.start()

    def stop(self) -> None:
        """At once, whatever it is doing."""
        self._process.kill()
        if self._opened is not None:
            self._opened[2].stop()

    # -- what it says --------------------------------------------------------------------------------------------------

    def hear(self, fact: inbox.EngineFact) -> None:
        """Raises `ConfigurationError` when the model cannot be loaded as told, and `EngineDiedError` when one that has
        served cannot be had again.
        """
        if fact.life != self._process.life:
            return  # of one that is gone
        match fact:
            case inbox.EngineSaid(_, events):
                self._hear_events(events)
            case inbox.EngineHas(_, use):
                self._hear_memory(use)
            case inbox.EngineEnded(_, how):
                _log.error("%s; what it held will run again", how)
                self._lives.died(how)
                self.restart(suspect=True)
            case inbox.EngineLoaded(_, info):
                self._process.info = info
                self._process.heard()
                self._loaded(info)
            case inbox.EngineTries(_, backend):
                self._lives.tries(backend)
                self._process.heard()
                self._told_slow = False
            case inbox.EngineRefused(_, message):
                # One that has served can be served again: that it cannot now may pass.
                raise EngineDiedError(message) if self.is_open else ConfigurationError(message)

    def _hear_events(self, events: Sequence[Event]) -> None:
        self._process.heard()
        if not events:
            return
        self._lives.worked()
        now = self._now()
        for event in events:
            self._observer.heard(event)
        self._jobs.note([each for event in events for each in self.batcher.absorb(event, now)])

    def _hear_memory(self, use: Use) -> None:
        if use.near and (self.memory is None or not self.memory.near):
            _log.warning("the engine has %s; --memory-limit-gb allows another amount", use)
        self.memory = use

    def _loaded(self, info: EngineInfo) -> None:
        if not self._lives.loaded(info):
            _log.error(
                "the engine came back as another one, %s on %s: the worker begins anew", info.backend, info.device
            )
            self._tell(inbox.Command(inbox.BEGIN_ANEW))
        if self.is_open:
            return
        for reason in info.reasons:
            _log.info("%s", reason)
        _log.info("%s engine: %s on %s (%s), model %s", info.kind, info.backend, info.device, info.precision,
                  ", ".join((info.model, *info.more_models)))  # fmt: skip
        if info.note:
            _log.warning("%s", info.note)
        reading = ReadingProcess(info, self._settings.allowed, self._tell)
        reading.start()
        self._now()
        batcher = make_batcher(self._settings, info, reading)
        self._now.worked()  # to import and to read a tokenizer takes seconds, where it is done for the first time
        self._opened = batcher, Interruptions(self._process, batcher, self._jobs), reading

    def take_back(self, read: inbox.ReadElsewhere) -> None:
        """A long job was read by the process that reads them."""
        self._jobs.note(self.batcher.take_back(read, self._now()))

    # -- what it is given ----------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Gives it what it has room for. The device first: what is ready does not wait for what is not."""
        if self.info is None:
            return
        self._admit_work()
        if unread := self.batcher.unread():
            self._note_begun(self.batcher.begun() | unread)
            self._jobs.note(self.batcher.read(self._now()))
            self._admit_work()
        self._note_begun(self.batcher.begun())

    def calling(self, job_id: str) -> AbstractContextManager[None]:
        """Around what runs in this process because this job names it. For any thread."""
        return nullcontext() if self._begun is None else self._begun.calling(job_id)

    def _note_begun(self, job_ids: Set[str]) -> None:
        """Where the supervisor reads it after a death of this process."""
        if self._begun is not None:
            self._begun.write(job_ids)

    def _admit_work(self) -> None:
        idle = not self.batcher.has_work
        while (work := self.batcher.next_work(self._now())) is not None:
            self._process.admit(work, idle=idle)
            self._observer.admitted(work)
            idle = False

    # -- what ends before its time -------------------------------------------------------------------------------------

    def look_after_loading(self) -> None:
        """Says of a backend that loads for long, ends one that hangs, and gives back what waits for it."""
        silent_s = self._process.silent_s()
        if self.info is not None or not self._lives.tried or silent_s <= SLOW_LOADING_S:
            return
        if not self._told_slow:
            self._told_slow = True
            _log.warning("the backend %s has been loading for %.0f s", self._lives.tried, silent_s)
        self.hand_over()
        if silent_s > LOADING_PATIENCE_S:
            how = f"the engine process {self._process.pid} was silent for {silent_s:.0f} s"
            _log.error("%s while it loaded %s: it is ended", how, self._lives.tried)
            self._lives.died(how)
            self.restart(suspect=False)

    def look_after(self, now: float, slept_s: float) -> None:
        """Ends what is out of time, and an engine that hangs. `slept_s`: for how long nobody ran just now."""
        if slept_s > 0:
            self._process.heard()  # its silence meanwhile says nothing
        self._interruptions.enforce_timeouts(now)
        if self.is_open:
            self._give_back(self.batcher.out_of_line(now))
        if self.info is not None and self._interruptions.engine_is_hung(now):
            self.restart(suspect=True)
        self.look_after_loading()

    def spare(self, allowed: bool) -> None:
        """Whether the engine may do what nobody waits for."""
        if self.info is not None and allowed != self._told_spare:
            self._told_spare = allowed
            self._process.say_spare(allowed)

    def interrupt(self, outcome: Failed | Stopped) -> None:
        self._interruptions.interrupt(outcome)

    def abandon(self, job_ids: Sequence[str]) -> None:
        self._interruptions.abandon(job_ids)

    def forget(self, job_ids: Collection[str]) -> None:
        """These runs are somebody else's by now."""
        self._interruptions.forget(job_ids)

    def hand_over(self) -> None:
        """Puts back what it has not begun."""
        if self.is_open:
            self._give_back([job for job in self._jobs.open.values() if not self.batcher.has_begun(job.id)])

    def _give_back(self, jobs: Sequence[ClaimedJob]) -> None:
        if jobs:
            self.forget([job.id for job in jobs])
            self._jobs.note(Returned(job) for job in jobs)
