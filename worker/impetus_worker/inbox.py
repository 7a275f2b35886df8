"""What a worker's loop is told, and by whom it is told: the facts that its other parties hand to it, in one queue.

The loop waits here and nowhere else. A fact is finished: whoever told it waits for nothing.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.machine.footprint import Use
    from impetus_backends.protocol import EngineInfo, Event

    from .leases.claims import ClaimedJob, Renewal
    from .leases.portions import Share

SHUTDOWN, SUPERVISOR_GONE = "shutdown", "supervisor-gone"
BEGIN_ANEW = "begin-anew"
"""The engine is another one by now, and what it makes cannot be mixed with what was made: the worker ends, for another
to begin.
"""
HANDOVER = "handover"
"""The machine is about to sleep: what has not begun goes back to its queue."""


@dataclass(frozen=True, slots=True)
class Command:
    """Something to do: RQ's word (stop-job, stop-execution, kill-horse, shutdown), or one of ours."""

    name: str
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class EngineTries:
    """The engine process is about to load this backend; an empty name: it loads nothing any more."""

    life: int
    backend: str


@dataclass(frozen=True, slots=True)
class EngineLoaded:
    life: int
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class EngineRefused:
    """It cannot load, whatever is tried."""

    life: int
    message: str


@dataclass(frozen=True, slots=True)
class EngineSaid:
    life: int
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class EngineHas:
    """How much memory it has."""

    life: int
    use: Use


@dataclass(frozen=True, slots=True)
class EngineEnded:
    """The process is gone. `life` says which of the processes that were started one after another."""

    life: int
    how: str


EngineFact: TypeAlias = EngineTries | EngineLoaded | EngineRefused | EngineSaid | EngineHas | EngineEnded


@dataclass(frozen=True, slots=True)
class ReadElsewhere:
    """What a job that was too long for the loop asks for, or the `ImpetusError` with which it fails."""

    token: str
    came: Any


@dataclass(frozen=True, slots=True)
class Answered:
    """What the server said to each call of the exchange: what it comes to, or the error."""

    answers: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The exchange failed, and it is unknown what the server has run of it. It may be tried again after a while."""

    retry_in_s: float


@dataclass(frozen=True, slots=True)
class Rang:
    """A queue that was empty has a job."""

    queue: str


@dataclass(frozen=True, slots=True)
class EndedByRq:
    """RQ's ending of this run is over, whatever came of it."""

    job: ClaimedJob


@dataclass(frozen=True, slots=True)
class Renewed:
    """What came of renewing the leases of these runs."""

    jobs: Sequence[ClaimedJob]
    renewal: Renewal


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The queues that this worker should serve are others now."""

    queues: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """What is this worker's of the queue whose callers wait, and of bulk."""

    shares: tuple[Share, Share]


@dataclass(frozen=True, slots=True)
class LookedRound:
    """Housekeeping has done each of its duties for the first time."""

    who: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A thread ended by an error that nobody foresaw."""

    party: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class FromServer:
    """What a thread said that talks to the worker's server of this number."""

    number: int
    said: object


class Inbox:
    """Facts in the order in which they came, from any thread and from signal handlers."""

    def __init__(self) -> None:
        self._facts: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def tell(self, fact: object) -> None:
        self._facts.put(fact)

    def wait(self, timeout_s: float) -> list[Any]:
        """All facts that are there; waits until there is one, or the time is over."""
        facts = []
        try:
            facts.append(self._facts.get(timeout=max(0.0, timeout_s)))
            while True:
                facts.append(self._facts.get_nowait())
        except queue.Empty:
            return facts

    def hear_signals(self) -> None:
        """From now on SIGINT and SIGTERM are commands. Call it in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.tell(Command(SHUTDOWN)))

    def watch(self, lifeline: int) -> None:
        """Tells `SUPERVISOR_GONE` once this file descriptor is readable, or closed."""

        def wait_for_the_end() -> None:
            try:
                select.select([lifeline], [], [])
                os.read(lifeline, 1)
            finally:
                self.tell(Command(SUPERVISOR_GONE))

        threading.Thread(target=wait_for_the_end, name="lifeline", daemon=True).start()
