"""What must happen every few seconds, whatever the worker's loop is doing: in a thread of its own.

Duties that are due run one after another, each for a moment; none waits for the loop. Who was asleep, or had no server
for a while, first renews what is its own, and only a while later judges others: they may have slept beside it.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from ..awake import AwakeClock
from ..companions.companion import Companion
from ..companions.link import PASSING, Link, is_about_data
from ..inbox import LookedRound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

_TICK_S = 0.5
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Duty:
    """Something to do each `interval_s`. `run` says whether there is more of it to do at once."""

    name: str
    run: Callable[[Redis], bool | None]
    interval_s: float
    judges_others: bool = False
    """Whether it must wait after a sleep or an absence of the server."""
    due_at: float = field(default=0.0)


class Housekeeping(Companion):
    """`grace_s`: for how long others are not judged after a sleep. Tells `LookedRound` once."""

    def __init__(
        self,
        name: str,
        link: Link,
        duties: Sequence[Duty],
        tell: Callable[[object], None],
        grace_s: float,
        clock: AwakeClock | None = None,
    ) -> None:
        super().__init__(name, tell)
        self._link = link
        self._duties = duties
        self._grace_s = grace_s
        self._clock = clock or AwakeClock()
        self._judge_from = 0.0
        self._asked = threading.Event()
        self._undone = {duty.name for duty in duties}

    def hurry(self) -> None:
        """Every duty is due now."""
        for duty in self._duties:
            duty.due_at = 0.0
        self._asked.set()

    def stop(self) -> None:
        super().stop()
        self._asked.set()

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                if not self._tick():
                    self._asked.wait(_TICK_S)
                    self._asked.clear()
            except PASSING as error:
                self.stopped.wait(self._link.failed(error))
                self._clock.slept_s()  # it knows how long it waited
                self._begin_anew()

    def _begin_anew(self) -> None:
        self._judge_from = self._clock() + self._grace_s
        for duty in self._duties:
            duty.due_at = 0.0

    def _did(self, duty: Duty) -> None:
        if duty.name in self._undone:
            self._undone.remove(duty.name)
            if not self._undone:
                self.tell(LookedRound(self.name))

    def _do(self, duty: Duty) -> bool | None:
        """Does it; whether there is more of it. One that cannot be done for what lies in Redis holds up no other."""
        try:
            return self._link.ask(duty.run)
        except ResponseError as error:
            if not is_about_data(error):
                raise
            _log.error("%s: %s; it is tried again in %.0f s", duty.name, error, duty.interval_s)
            return False

    def _has_slept(self) -> bool:
        if (slept_s := self._clock.slept_s()) <= 0:
            return False
        _log.warning("this process did not run for %.0f s: its leases are renewed first", slept_s)
        self._begin_anew()
        return True

    def _took_long(self, duty: Duty) -> bool:
        """Then the server was silent, or this process asleep meanwhile: what is its own is due again. The other duties
        have their turn first, as each of them may take as long.
        """
        if (took_s := self._clock.slept_s()) <= 0:
            return False
        _log.warning("%s took %.0f s: others are not judged before leases are renewed", duty.name, took_s)
        self._begin_anew()
        return True

    def _tick(self) -> bool:
        """Runs what is due; whether any of it has more to do."""
        busy = False
        for duty in self._duties:
            if self.stopped.is_set():
                return False
            if self._has_slept():  # looked at before each, for a lid closes at any moment
                return True
            now = self._clock()
            if now < duty.due_at or (duty.judges_others and now < self._judge_from):
                continue
            more = self._do(duty)
            if not more:
                self._did(duty)
            duty.due_at = now if more else now + duty.interval_s
            busy = self._took_long(duty) or busy or bool(more)
        return busy
