"""How tests wait for what happens elsewhere: they look again and again, and give up when nothing came of it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
LIMIT_S = 30.0


class _MachineTime:
    """Seconds that the machine had for one who wants one processor: where more want to run than there are
    processors, the clock's time counts as much less. No test is to judge how busy a machine is."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self._looked = time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        self.passed_s += (now - self._looked) / max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        self._looked = now


def awaited(look: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """What `look` returned when it returned something true, or last before the limit was over.

    It looks ever more rarely, by a tenth of what it has waited: what is waited for needs the processor too.
    """
    began, machine = time.monotonic(), _MachineTime()
    while not (seen := look()):
        machine.look()
        if machine.passed_s > limit_s:
            break
        time.sleep(min(max(0.01, (time.monotonic() - began) / 10), 0.25))
    return seen


def eventually(look: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """What `look` returns once it is true; fails when the limit is over."""
    seen = awaited(look, limit_s)
    assert seen, f"not seen within {limit_s} s of a machine's time: {look!r}"
    return seen
