"""How much one gateway takes at once, of all and of each key."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .callers import Caller

_MINUTE_S = 60.0


class Limits:
    """Places for requests, and for each key a bucket of requests a minute. `clock`: in seconds."""

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_requests = max_requests
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}
        """By name: how many requests are left, and when that was so."""

    @property
    def running(self) -> int:
        return self._running.total()

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        """One for the time of the block. Raises `HttpError` 429."""
        if self.running >= self._max_requests:
            raise busy(f"{self._max_requests:,} requests are being answered; try again", 1, code="overloaded")
        if caller.max_concurrent is not None and self._running[caller.name] >= caller.max_concurrent:
            raise busy(f"this key may have {caller.max_concurrent:,} requests at once", 1)
        if caller.requests_per_minute is not None:
            self._take(caller.name, caller.requests_per_minute)
        self._running[caller.name] += 1
        try:
            yield
        finally:
            self._running[caller.name] -= 1

    def _take(self, name: str, per_minute: int) -> None:
        now = self._clock()
        left, then = self._buckets.get(name, (float(per_minute), now))
        left = min(per_minute, left + (now - then) * per_minute / _MINUTE_S)
        if left < 1:
            self._buckets[name] = (left, now)
            raise busy(f"this key may send {per_minute:,} requests a minute", (1 - left) * _MINUTE_S / per_minute)
        self._buckets[name] = (left - 1, now)
