"""Runs a callback that a job names in a thread of its own, so that one that hangs keeps nobody else waiting.

Python interrupts no thread that waits in a call (a sleep, a socket, a lock), so such a one is left behind when its time
is over, and ends when the call returns.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.timeouts import BaseDeathPenalty, JobTimeoutException, TimerDeathPenalty

from ..companions.link import PASSING

if TYPE_CHECKING:
    from collections.abc import Callable

_INTERRUPTED_S = 0.5
"""How much longer one that can be interrupted may take to end."""
_LOST_LINES = (RedisConnectionError, RedisTimeoutError)
_log = logging.getLogger(__name__)


class NoPenalty(BaseDeathPenalty):
    """For RQ, which would end callbacks by a timer of its own: it would strike the thread that waits for them."""

    def setup_death_penalty(self) -> None:
        pass

    def cancel_death_penalty(self) -> None:
        pass


def bounded(callback: Callable[..., Any] | None, timeout_s: int) -> Callable[..., Any] | None:
    """The callback, whose call ends within about `timeout_s`, by `JobTimeoutException` if it must; 0 or less: when it
    does by itself. Whatever else ends it is an error of its own, and not the server's or this program's. It is called
    once more where it lost a line, which may be the worker's own, that a failover closed.
    """
    if callback is None or inspect.iscoroutinefunction(callback):
        return callback

    @functools.wraps(callback)
    def called(*arguments: Any) -> Any:
        call = run(*arguments)
        return (run(*arguments) if call.lost_its_line else call).result()

    def run(*arguments: Any) -> _Call:
        call = _Call(callback, arguments, timeout_s)
        call.start()
        call.join(timeout_s + _INTERRUPTED_S if timeout_s > 0 else None)
        if call.is_alive():
            _log.error(
                "a callback, %s, hangs; it is left behind after %d s",
                getattr(callback, "__qualname__", callback),
                timeout_s,
            )
            raise JobTimeoutException(f"the callback took longer than its timeout of {timeout_s} s")
        return call

    return called


class _Call(threading.Thread):
    def __init__(self, callback: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: int) -> None:
        super().__init__(name="callback", daemon=True)
        self._callback, self._arguments, self._timeout_s = callback, arguments, timeout_s
        self._returned: Any = None
        self._raised: BaseException | None = None

    def run(self) -> None:
        try:
            with TimerDeathPenalty(self._timeout_s, JobTimeoutException):
                self._returned = self._callback(*self._arguments)
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._raised = error

    @property
    def lost_its_line(self) -> bool:
        return type(self._raised) in _LOST_LINES  # and none of their kinds, which a server answered

    def result(self) -> Any:
        error = self._raised
        if isinstance(error, (*PASSING, SystemExit, KeyboardInterrupt, GeneratorExit)):
            raise RuntimeError(f"the callback raised {type(error).__name__}: {error}") from error
        if error is not None:
            raise error
        return self._returned
