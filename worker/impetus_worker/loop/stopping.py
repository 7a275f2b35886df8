"""How a worker ends: warm, cold, or without a server, which it does not wait for for ever."""

from __future__ import annotations

import logging
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
        self.without_server = False
        """Whether it gave up waiting for the server, and so puts nothing back."""
        self._clock = clock
        self._begun = False
        self._unanswered_since: float | None = None

    def __bool__(self) -> bool:
        return self._begun

    def begin(self, *, cold: bool) -> None:
        self._begun, self.cold = True, cold
        _log.info("stopping (cold)" if cold else "stopping (warm); signal again to stop at once")
        if self._unanswered_since is not None:
            self._unanswered_since = self._clock()  # from now on its patience counts

    def asked(self) -> None:
        """The server was asked for something."""
        if self._unanswered_since is None:
            self._unanswered_since = self._clock()

    def answered(self) -> None:
        self._unanswered_since = None

    def look(self) -> None:
        """Leases run out by themselves: a server that does not answer is given up."""
        since = self._unanswered_since
        if self and not self.cold and since is not None and self._clock() - since > FAREWELL_S:
            _log.error("stopping without Redis, which does not answer")
            self.cold = self.without_server = True
