"""Signals that strike where raising would do harm, or nothing: they are raised a moment later."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click
import pytest

from impetus_producer.cli.ending import Signals, ToldToEnd, run_tasks

from .test_ending import begun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

strike = partial(signal.raise_signal, signal.SIGTERM)


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signals = Signals()
    signals.hear()
    try:
        yield signals
    finally:
        signals.forget()
        for number, handler in before.items():
            signal.signal(number, handler)


def until_told() -> None:
    assert not threading.Event().wait(60)


class Struck:
    """Stands for a context manager's generator: a signal strikes once it has opened, as `next` returns."""

    def __init__(self) -> None:
        self.closed = False

    __next__ = staticmethod(strike)

    def throw(self, *raised: Any) -> NoReturn:
        self.closed = True
        raise next(each for each in raised if isinstance(each, BaseException))


def test_a_block_that_is_entered_is_left_in_its_order(signals: Signals) -> None:
    struck: Any = Struck()
    with pytest.raises(ToldToEnd), contextmanager(lambda: struck)():
        until_told()
    assert struck.closed


def test_what_is_raised_in_a_finaliser_is_raised_once_more_and_not_printed(signals: Signals) -> None:
    class Finalised:
        def __del__(self) -> None:
            strike()

    Finalised()
    with pytest.raises(ToldToEnd) as told:
        until_told()
    assert told.value.number == signal.SIGTERM


def test_a_second_signal_leaves_time_to_put_things_in_order(signals: Signals) -> None:
    with pytest.raises(ToldToEnd):
        strike()
    strike()
    with pytest.raises(ToldToEnd):
        until_told()


def test_nothing_comes_of_a_signal_once_there_is_nothing_to_put_in_order(signals: Signals) -> None:
    with pytest.raises(ToldToEnd):
        strike()
    strike()
    signals.forget()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_tasks_are_not_begun_where_a_signal_comes_first(signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    run_anyway: Any = asyncio.run

    def struck(main: Any) -> None:
        strike()
        run_anyway(main)

    async def never() -> None:
        raise AssertionError

    monkeypatch.setattr(asyncio, "run", struck)
    with click.Context(click.Command("x"), obj=signals), pytest.raises(ToldToEnd):
        run_tasks(never)


@pytest.mark.system
def test_who_ends_it_while_its_command_line_is_read_reads_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    process = begun("redis://127.0.0.1:1", "--config", str(tmp_path / "config.toml"), "status")
    with (tmp_path / "config.toml").open("wb"):
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1] == "Ended by SIGTERM.\n"
    assert process.returncode == 143
