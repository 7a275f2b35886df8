"""Processes that a proof starts, waits for and ends."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen

_POLL_S = 0.05


def children_of(pid: int) -> list[int]:
    """The processes that its first thread started. Linux."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(look: Callable[[], bool], problem: str, limit_s: float) -> None:
    """Waits until `look` is true; ends the program with `problem` when the limit is over."""
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(problem)
        time.sleep(_POLL_S)


def end(process: Popen[bytes]) -> None:
    """In order where it ends within 20 s, and else by a kill."""
    if process.poll() is None:
        process.terminate()
        with suppress(TimeoutExpired):
            process.wait(20)
    process.kill()
    process.wait()
