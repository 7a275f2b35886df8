"""How soon places become free, by when the last few did."""

from __future__ import annotations

from collections import deque

_LOOKED_AT = 4
"""Fewer say nothing."""
_LEAST_S = 1e-6


class Pace:
    """Times are in seconds of one clock."""

    def __init__(self) -> None:
        self._freed: deque[float] = deque(maxlen=_LOOKED_AT)

    def freed(self, now: float) -> None:
        """A place has become free."""
        self._freed.append(now)

    def within(self, seconds: float, now: float) -> int:
        """How many will in so long, if it goes on like this; the longer none does, the fewer."""
        if len(self._freed) < _LOOKED_AT:
            return 0
        return int((_LOOKED_AT - 1) * seconds / max(now - self._freed[0], _LEAST_S))
