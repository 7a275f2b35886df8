"""Whether those that a worker stands by for do their work: a queue with jobs whose first never changes is nobody's.

A record only says that its worker lives. It may be forged, or true of one that hangs; what is seen on the queues is
proof. Knows queues; knows no records.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from impetus_producer.enqueueing.jobs import queue_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

STILL_S = 30.0
"""So long jobs wait while nobody takes any: more than a Neural Engine needs for whatever it runs."""
SERVE_S = 600.0
"""So long a worker then serves, whoever says that it does, before it stands by and watches anew."""


class Watch:
    """On the queues that a worker lets others serve. `clock`: in seconds."""

    def __init__(self, queues: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._queues = queues
        self._clock = clock
        self._first: tuple[object, ...] = ()
        """The first job of each queue, and since when they are."""
        self._since = 0.0
        self._over_until: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether nobody is to be stood by for, because of what was seen."""
        if self._over_until is not None and self._clock() >= self._over_until:
            self._over_until, self._first = None, ()
        return self._over_until is not None

    def look(self, connection: Redis) -> None:
        """To be called now and then while the worker stands by. Raises `RedisError`."""
        first = self._first_jobs(connection)
        now = self._clock()
        if first != self._first or not any(first):
            self._first, self._since = first, now
        elif now - self._since >= STILL_S:
            self._over_until = now + SERVE_S

    def _first_jobs(self, connection: Redis) -> tuple[object, ...]:
        """Nothing while the workers are suspended: then nobody is to take any."""
        with connection.pipeline(transaction=False) as pipeline:
            pipeline.exists("rq:suspended")
            for queue in self._queues:
                pipeline.lindex(queue_key(queue), 0)
            suspended, *first = pipeline.execute(raise_on_error=False)
        for answer in (suspended, *first):
            if isinstance(answer, Exception) and not isinstance(answer, ResponseError):
                raise answer
        return () if suspended else tuple(None if isinstance(each, ResponseError) else each for each in first)
