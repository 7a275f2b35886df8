"""How a worker ends: warm, cold, or without a server, which it does not wait for for ever."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FAREWELL_S = 10.0
"""So long a worker that is to stop waits for an answer, for webhooks, and for what is under way."""
_log = logging.getLogger(__name__)


class Stopping:
    """True from when the worker was told to. `clock`: the loop's, in seconds awake.

    Warm: what the engine has begun is finished, the rest goes back. Cold: everything goes back at once.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.cold = False
        self.since = math.inf
        """By the clock; when it was told last."""
        self._clock = clock

    def __bool__(self) -> bool:
        return self.since < math.inf

    def begin(self, *, cold: bool) -> None:
        self.since, self.cold = self._clock(), cold
        _log.info("stopping (cold)" if cold else "stopping (warm); signal again to stop at once")


class Silence:
    """Of one server: how long it has not answered. `clock`: that of `stopping`."""

    def __init__(self, stopping: Stopping, clock: Callable[[], float]) -> None:
        self.given_up = False
        """Whether a worker that stops waits for it no longer, and so puts nothing back."""
        self._stopping = stopping
        self._clock = clock
        self._since = math.inf

    def asked(self) -> None:
        """The server was asked for something."""
        self._since = min(self._since, self._clock())

    def answered(self) -> None:
        self._since = math.inf

    def look(self) -> None:
        """Leases run out by themselves: a server that does not answer is given up."""
        since = max(self._since, self._stopping.since)  # before it was told to stop it had all the time
        if not self.given_up and not self._stopping.cold and self._clock() - since > FAREWELL_S:
            _log.error("stopping without Redis, which does not answer")
            self.given_up = True
