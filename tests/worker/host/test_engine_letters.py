"""What the worker's loop says to its engine, over a pipe that nobody may be reading."""

from __future__ import annotations

import os
import socket
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING

import pytest

from impetus_worker.host.engine_process import Letters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

LARGE, SMALL = "x" * 300_000, "y" * 500


@pytest.fixture
def ends() -> Iterator[tuple[Letters, Connection]]:
    """Over a pipe with buffers as small as a Mac's."""
    ours, theirs = Pipe()
    with socket.socket(fileno=os.dup(ours.fileno())) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    letters = Letters(ours)
    yield letters, theirs
    letters.end()
    theirs.close()


def test_a_small_letter_is_there_when_it_is_put(ends: tuple[Letters, Connection]) -> None:
    letters, theirs = ends
    letters.put(SMALL)
    assert theirs.poll(0)


def test_who_writes_to_an_engine_that_does_not_read_waits_for_nothing_and_loses_nothing(
    ends: tuple[Letters, Connection],
) -> None:
    letters, theirs = ends
    said = [(number, SMALL) for number in range(100)]
    for each in said:
        letters.put(each)
    assert [theirs.recv() for _ in said] == said


def test_a_small_letter_overtakes_no_large_one(ends: tuple[Letters, Connection]) -> None:
    letters, theirs = ends
    said = [(number, SMALL if number % 2 else LARGE) for number in range(40)]
    for number, each in enumerate(said):
        letters.put(each)
        if number % 2:
            assert [theirs.recv(), theirs.recv()] == said[number - 1 : number + 1]


def test_an_engine_that_is_gone_is_no_error_of_who_writes_to_it(ends: tuple[Letters, Connection]) -> None:
    letters, theirs = ends
    theirs.close()
    for each in (SMALL, LARGE, SMALL):
        letters.put(each)
