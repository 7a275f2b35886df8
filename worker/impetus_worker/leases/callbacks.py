"""Runs a callback that a job names in a thread of its own, so that one that hangs keeps nobody else waiting.

Python interrupts no thread that waits in a call (a sleep, a socket, a lock), so such a one is left behind when its time
is over, and ends when the call returns.
"""

from __future__ import annotations

import inspect
import logging
import threading
import traceback
from typing import TYPE_CHECKING, Any

from rq.timeouts import BaseDeathPenalty, JobTimeoutException, TimerDeathPenalty

from impetus_producer.servers.answers import Trouble, trouble

from ..companions.link import PASSING

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

_INTERRUPTED_S = 0.5
"""How much longer one that can be interrupted may take to end."""
_log = logging.getLogger(__name__)


class NoPenalty(BaseDeathPenalty):
    """For RQ, which would end callbacks by a timer of its own: it would strike the thread that waits for them."""

    def setup_death_penalty(self) -> None:
        pass

    def cancel_death_penalty(self) -> None:
        pass


def bounded(name: str, load: Callable[[], Callable[..., Any]], timeout_s: int, connection: Redis) -> Callable[..., Any]:
    """The callback that `load` imports, which with its import ends within about `timeout_s`, by `JobTimeoutException`
    if it must; 0 or less: when it does by itself. Whatever else ends it is an error of its own, and not the server's or
    this program's, but for what passes of the server that it was given a `connection` to, the worker's.
    """

    def called(*arguments: Any) -> Any:
        call = _Call(load, arguments, timeout_s)
        call.start()
        call.join(timeout_s + _INTERRUPTED_S if timeout_s > 0 else None)
        if call.is_alive():
            _log.error("a callback, %s, hangs; it is left behind after %d s", name, timeout_s)
            raise JobTimeoutException(f"the callback took longer than its timeout of {timeout_s} s")
        return call.result(connection)

    return called


class _Call(threading.Thread):
    def __init__(self, load: Callable[[], Callable[..., Any]], arguments: tuple[Any, ...], timeout_s: int) -> None:
        super().__init__(name="callback", daemon=True)
        self._load, self._arguments, self._timeout_s = load, arguments, timeout_s
        self._returned: Any = None
        self._raised: BaseException | None = None

    def run(self) -> None:
        try:
            with TimerDeathPenalty(self._timeout_s, JobTimeoutException):
                callback = self._load()
                if inspect.iscoroutinefunction(callback):
                    raise TypeError("coroutine functions are no callbacks")
                self._returned = callback(*self._arguments)
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._raised = error

    def result(self, connection: Redis) -> Any:
        error = self._raised
        if isinstance(error, PASSING) or not isinstance(error, Exception | None):
            if trouble(error) is Trouble.PASSING and _asked_through(connection, error):
                raise error
            raise RuntimeError(f"the callback raised {type(error).__name__}: {error}") from error
        if error is not None:
            raise error
        return self._returned


def _asked_through(connection: Redis, error: BaseException) -> bool:
    """Whether it was raised by a client, or a pipeline, of this one's connections."""
    asking = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(getattr(each, "connection_pool", None) is connection.connection_pool for each in asking)
