"""Time as a process that may be asleep: the machine's sleep and a stopped process do not count.

What a job may take and how long an engine may be silent is measured in this time; else everything would be overdue
when a lid opens.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GAP_S = 3.0
"""Who looks at the clock each second and finds so much more gone was not running meanwhile."""


def boot_clock() -> float:
    """Seconds that go on while the machine sleeps; Python's `time.monotonic()` stops then, on Linux and macOS alike."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)  # clock_gettime(3): goes on while the system is asleep
    return time.monotonic()


class AwakeClock:
    """Seconds awake. One thread calls it, at least about once a second while it is awake."""

    def __init__(self, clock: Callable[[], float] = boot_clock) -> None:
        self._clock = clock
        self._last = clock()
        self._asleep_s = 0.0
        self._unsaid_s = 0.0

    def __call__(self) -> float:
        now = self._clock()
        gap_s, self._last = now - self._last, now
        if gap_s > GAP_S:
            self._asleep_s += gap_s
            self._unsaid_s += gap_s
        return now - self._asleep_s

    def worked(self) -> None:
        """What has passed since the last call was long work of the thread that calls, and no sleep."""
        self._last = self._clock()

    def slept_s(self) -> float:
        """How long it slept since this was last asked."""
        self()
        slept_s, self._unsaid_s = self._unsaid_s, 0.0
        return slept_s


class Pulse:
    """Whether a thread goes on, as another one sees it, which asks at least every second or two while it is awake."""

    def __init__(self) -> None:
        self._beats = 0
        self._seen = 0
        self._clock = AwakeClock()
        self._seen_at = self._clock()

    def beat(self) -> None:
        """Called by the one."""
        self._beats += 1

    def silent_s(self) -> float:
        """Called by the other: since when it has seen no beat, in seconds awake."""
        now, beats = self._clock(), self._beats
        if beats != self._seen:
            self._seen, self._seen_at = beats, now
        return now - self._seen_at
