"""How a command ends before its time: by Ctrl-C, SIGTERM or SIGHUP, or when nobody reads any more what it prints."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType
    from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MOMENT_S = 0.001
_AGAIN_S = 1.0
_BETWEEN_BLOCKS = frozenset(
    {"contextlib", "click.core", "click.globals", "signal", "enum", f"{__package__}.main", __name__}
)
"""Modules of which the code itself never waits: what enters and leaves blocks, and what says how a command ended."""


class ToldToEnd(KeyboardInterrupt):
    """By a signal. What is put in order after Ctrl-C is so after each of them."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def noting(remains: Callable[[], str]) -> Iterator[None]:
    """Adds to what ends this block before its time what remains then, and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError) as ended:
        ended.add_note(remains())
        raise


def status_of(ended: BaseException) -> int:
    """The exit status, which shells make of a signal's number."""
    if isinstance(ended, BrokenPipeError):
        return 128 + signal.SIGPIPE
    return 128 + (ended.number if isinstance(ended, ToldToEnd) else signal.SIGINT)


def sentence_of(ended: BaseException) -> str:
    number = status_of(ended) - 128
    how = "Interrupted" if number == signal.SIGINT else f"Ended by {signal.Signals(number).name}"
    return ". ".join([how, *getattr(ended, "__notes__", ())]).removesuffix(".") + "."


def drop_output() -> None:
    """What is left of what cannot be written goes nowhere: the interpreter would try it once more at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Signals:
    """From `hear` until `forget` signals raise `ToldToEnd` in the main thread. What nohup, or a shell that starts a
    program in the background, has it ignore stays ignored.

    One that strikes between blocks, where `contextlib` enters or leaves one, is raised a moment later: what was just
    opened would be closed after all around it, if at all (https://github.com/python/cpython/issues/74174). So is one
    that the interpreter drops, as it does in a `__del__`. A second one is raised a second later, as terminals and
    shells tell the same twice: by then most has been put in order.
    """

    def __init__(self) -> None:
        self._heard = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        self._told: int | None = None
        self._postponed: int | None = None
        self._not_before = 0.0
        self._unraisable = sys.unraisablehook

    def hear(self) -> None:
        sys.unraisablehook = self._dropped
        self._set(self._raise)

    def forget(self) -> None:
        """There is nothing left to put in order: the next one ends the program on the spot."""
        for number in self._heard:
            signal.signal(number, signal.SIG_DFL)
        self._postponed = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        sys.unraisablehook = self._unraisable

    def check(self) -> None:
        if self._told is not None:
            self._raised_now()
            raise ToldToEnd(self._told)

    def run_tasks(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        import asyncio

        told: list[int] = []  # which `check` must not raise before `main` has put things in order
        cancels: list[Callable[[], object]] = []

        def note(number: int, _: object) -> None:
            if (due := self._due(number)) is not None:
                told.append(due)
                for cancel in cancels:
                    cancel()

        async def cancelled() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            cancels.append(lambda: loop.call_soon_threadsafe(task.cancel))
            try:
                if told:
                    raise asyncio.CancelledError
                await main()
            finally:
                cancels.clear()

        # One that is raised wherever it strikes would end the loop.
        self._set(note)
        try:
            asyncio.run(cancelled())
        except asyncio.CancelledError:
            if not told:
                raise
            self._told = told[0]
        finally:
            self._set(self._raise)
        self.check()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if (due := self._due(number, frame)) is not None:
            self._told = due
            raise ToldToEnd(due)

    def _due(self, number: int, frame: FrameType | None = None) -> int | None:
        """The signal to raise now; None where that is for later."""
        if number == signal.SIGALRM:
            if self._postponed is None:
                return None
            number = self._postponed
        wait_s = self._not_before - time.monotonic()
        if frame is not None and frame.f_globals.get("__name__") in _BETWEEN_BLOCKS:
            wait_s = max(wait_s, _MOMENT_S)
        if wait_s > 0:
            self._postpone(number, wait_s)
            return None
        self._raised_now()
        return number

    def _raised_now(self) -> None:
        self._postponed = None
        self._not_before = time.monotonic() + _AGAIN_S

    def _postpone(self, number: int, seconds: float) -> None:
        self._postponed = number
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _dropped(self, unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, ToldToEnd):
            self._not_before = 0.0
            self._postpone(unraisable.exc_value.number, _MOMENT_S)
        else:
            self._unraisable(unraisable)

    def _set(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        for number in (*self._heard, signal.SIGALRM):
            signal.signal(number, handler)


def check_signals() -> None:
    """Raises once more what this command was told: some libraries catch whatever is raised while they load."""
    if (signals := _signals()) is not None:
        signals.check()


def run_tasks(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """`asyncio.run`, where what the command is told cancels `main`, and is raised once that has ended."""
    import asyncio

    if (signals := _signals()) is not None:
        signals.run_tasks(main)
    else:
        asyncio.run(main())


def _signals() -> Signals | None:
    context = click.get_current_context(silent=True)
    found = None if context is None else context.find_root().obj
    return found if isinstance(found, Signals) else None
