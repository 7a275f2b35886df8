"""Waiting for a server that is away for a while: the one place where something is asked again.

What is asked has to mean the same when it is asked twice.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from ..errors import InvalidRequestError, ResultTimeoutError, ServerConfigurationError, ServerDataError, ServerError
from .troubles import server_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

AnswerT = TypeVar("AnswerT")

PATIENCE_VARIABLE = "IMPETUS_PATIENCE_S"
DEFAULT_PATIENCE_S = 300.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_SAME_OUTAGE_S = 30.0
"""Failures less apart are of one outage, as two attempts in a row to reach a silent server may be."""

_log = logging.getLogger("impetus_producer")


def patience_s(given: float | None = None) -> float:
    """How long to wait for a server: as given, else `IMPETUS_PATIENCE_S`, else five minutes."""
    if given is not None:
        return given
    if not (written := os.environ.get(PATIENCE_VARIABLE)):
        return DEFAULT_PATIENCE_S
    try:
        return float(written)
    except ValueError:
        raise InvalidRequestError(f"{PATIENCE_VARIABLE} is to be a number of seconds, not {written!r}") from None


class Patience:
    """Asks again while the server is away, for `limit_s` at most each time that it goes. Shared between threads.

    `say` gets one sentence when the server goes, and one when it is back, however many wait, and however often they
    ask anew meanwhile.
    """

    def __init__(self, limit_s: float | None = None, say: Callable[[str], None] = _log.warning) -> None:
        self.limit_s = patience_s(limit_s)
        self.say = say
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._last_failure = 0.0

    @property
    def away(self) -> bool:
        """Whether the server did not answer when it was asked last."""
        return self._away_since is not None

    def ask(
        self,
        connection: Redis,
        question: Callable[[], AnswerT],
        *,
        deadline: float | None = None,
        never_for: type[ServerError] | tuple[type[ServerError], ...] = (),
        while_away: Callable[[], None] | None = None,
        once: bool = False,
    ) -> AnswerT:
        """What `question` returns, once the server answers it. Lines that failed are made anew in between.

        Raises what the server's trouble is when patience ends, and at once where waiting does not help, or for those
        in `never_for`; `ResultTimeoutError` at `deadline`, by the monotonic clock. What `while_away` raises ends it.
        `once`: there are other servers to go on with meanwhile, so that this one is not waited for.
        """
        tries = Tries(self, deadline, never_for, while_away, once=once)
        while True:
            try:
                with server_errors(connection):
                    answer = question()
            except ServerError as error:
                time.sleep(tries.pause_after(error))
            else:
                self.came_back()
                return answer

    def went(self, error: ServerError, *, others: bool = False) -> float:
        """Since when the server is away, which is said if nobody knew. `others`: whether others are there meanwhile."""
        with self._lock:
            now = time.monotonic()
            if self._away_since is not None and now - self._last_failure < _SAME_OUTAGE_S:
                return self._away_since
            self._away_since = self._last_failure = now
        if self.limit_s:
            does = (
                "Doing without a server until it is back"
                if others
                else f"Waiting up to {self.limit_s:g} s for the server"
            )
            self.say(f"{does}: {error}")
        return now

    def failed_again(self) -> float:
        """When that was."""
        self._last_failure = time.monotonic()
        return self._last_failure

    def came_back(self) -> None:
        """To be told after each answer."""
        # Looked at without the lock first, as this is asked after each answer.
        if self._away_since is not None:
            with self._lock:
                if self._away_since is None:
                    return
                self._away_since = None
            if self.limit_s:
                self.say("The server answers again.")


class Tries:
    """What follows from each try of one question that failed."""

    def __init__(
        self,
        patience: Patience,
        deadline: float | None = None,
        never_for: type[ServerError] | tuple[type[ServerError], ...] = (),
        while_away: Callable[[], None] | None = None,
        *,
        once: bool = False,
    ) -> None:
        self._patience = patience
        self._once = once
        self._deadline = deadline
        self._never_for = never_for
        self._while_away = while_away
        self._given_up_at: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def pause_after(self, error: ServerError) -> float:
        """So many seconds later is the next try. Raises where there is to be none, as `Patience.ask` says."""
        if isinstance(error, ServerDataError):
            self._patience.came_back()
        if isinstance(error, (ServerConfigurationError, ServerDataError, self._never_for)):
            raise error
        # Who asks the same again and again, and fails alone, has patience only once.
        self._given_up_at = self._given_up_at or (
            self._patience.went(error, others=self._once) + self._patience.limit_s
        )
        now = self._patience.failed_again()
        if self._once or now >= self._given_up_at:
            raise error
        if self._deadline is not None and now >= self._deadline:
            raise ResultTimeoutError(f"the time given is over, and {error}") from error
        if self._while_away is not None:
            self._while_away()
        left_s = min(self._given_up_at, self._deadline or self._given_up_at) - now
        pause_s = self._pause_s * random.uniform(0.5, 1)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return max(0.0, min(left_s, pause_s))
