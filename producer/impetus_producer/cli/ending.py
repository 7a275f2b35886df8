"""How a command ends before its time: by Ctrl-C, SIGTERM or SIGHUP, or when nobody reads any more what it prints."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType
    from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    """From when it is made until `forget` signals raise `ToldToEnd` in the main thread. What nohup, or a shell that
    starts a program in the background, has it ignore stays ignored.
    """

    def __init__(self) -> None:
        self.heard = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        self._told: int | None = None
        self._set(self._raise)

    def check(self) -> None:
        if self._told is not None:
            raise ToldToEnd(self._told)

    async def cancelling(self, main: Coroutine[Any, Any, None]) -> None:
        """Runs `main`, which is cancelled by a signal: one that is raised wherever it strikes would end the loop."""
        import asyncio

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        told: list[int] = []  # which `check` must not raise before `main` has put things in order

        def cancel(number: int) -> None:
            told.append(number)
            task.cancel()

        for number in self.heard:
            loop.add_signal_handler(number, cancel, number)
        try:
            await main
        except asyncio.CancelledError:
            self._told = next(iter(told), None)
            self.check()
            raise
        finally:
            for number in self.heard:
                loop.remove_signal_handler(number)
            self._set(self._raise)

    def forget(self) -> None:
        """There is nothing left to put in order: the next one ends the program on the spot."""
        self._set(signal.SIG_DFL)

    def _set(self, handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
        for number in self.heard:
            signal.signal(number, handler)

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        self._told = number
        raise ToldToEnd(number)


def check_signals() -> None:
    """Raises once more what this command was told: some libraries catch whatever is raised while they load."""
    if (signals := _signals()) is not None:
        signals.check()


def run_tasks(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, where what the command is told cancels `main`, and is raised once that has ended."""
    import asyncio

    signals = _signals()
    asyncio.run(main if signals is None else signals.cancelling(main))


def _signals() -> Signals | None:
    context = click.get_current_context(silent=True)
    found = None if context is None else context.find_root().obj
    return found if isinstance(found, Signals) else None
