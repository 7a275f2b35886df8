"""An end to what a request brings along and what computes for as long as it likes: templates, patterns of schemas."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_S = 2
"""Of computing: common templates take milliseconds for long conversations, and all that decode wait meanwhile."""
_THREADS_S = 10.0
"""Of the clock, for long conversations, which are read beside what decodes."""


class EndlessError(Exception):
    """What was limited has had its time."""


@contextlib.contextmanager
def _by_clock() -> Iterator[None]:
    """For a thread, which no signal reaches: another one raises the error in it."""
    thread, over = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        if not over.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(EndlessError))

    limit = threading.Timer(_THREADS_S, interrupt)
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        over.set()
        limit.cancel()


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Interrupts what computes for longer, wherever it is."""
    if threading.current_thread() is not threading.main_thread():
        with _by_clock():
            yield
        return
    over = False

    def interrupt(*_: object) -> None:
        if not over:
            raise EndlessError

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, MOST_S, 0.1)  # and again: what a destructor raises is lost
    try:
        try:
            yield
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
