"""The duties by which a worker keeps its own leases, and sees to those of workers that are gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from impetus_producer.servers.fitness import look

from ..errors import ConfigurationError
from ..inbox import Renewed
from ..leases.claims import recover, strays, sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from ..leases.claims import ClaimedJob, Claims

FITNESS_INTERVAL_S = 600.0
SWEEP_INTERVAL_S = 1.0
STRAY_AFTER_S = 60.0
"""So long a job lies nowhere before it is put back: an RQ worker takes one off its queue before it says so."""
_RECOVERY_GOOD_FOR_S = 2.0
"""A server that gets to it later was silent meanwhile, and all leases on it ran out."""
_MOST_KNOWN = 100_000
"""Ids of jobs that are kept in mind."""
_log = logging.getLogger(__name__)


class Renewal:
    """Renews the leases of `jobs`, while `may_renew` says that the loop moves. Both are asked in the duty's thread."""

    def __init__(
        self,
        claims: Claims,
        jobs: Callable[[], list[ClaimedJob]],
        may_renew: Callable[[], bool],
        tell: Callable[[object], None],
    ) -> None:
        self._claims = claims
        self._jobs = jobs
        self._may_renew = may_renew
        self._tell = tell

    def __call__(self, connection: Redis) -> None:
        # Asked always, because who asks seldom cannot tell a loop that hangs from a machine that slept.
        moves = self._may_renew()
        jobs = self._jobs()
        if jobs and moves:
            renewal = self._claims.renew(jobs).run(connection)
            if renewal.lost or renewal.cancelled:
                self._tell(Renewed(jobs, renewal))


class ServerFitness:
    """Says what there is to say of the server: once, and what has changed again. Raises `ConfigurationError` where a
    worker can do nothing there.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, connection: Redis) -> None:
        fitness = look(connection, "worker")
        if fitness.refusal is not None:
            raise ConfigurationError(fitness.refusal)
        for sentence in fitness.warnings:
            if sentence not in self._said:
                _log.warning("%s", sentence)
        self._said = set(fitness.warnings)


class Recovery:
    """Puts back jobs whose leases ran out, of any worker of these queues."""

    def __init__(self, queues: Sequence[str], interval_s: float) -> None:
        self._queues = queues
        self._interval_s = interval_s

    def __call__(self, connection: Redis) -> bool:
        """Whether there may be more."""
        more = False
        until = connection.time()[0] + _RECOVERY_GOOD_FOR_S
        for queue in self._queues:
            if back := recover(queue, self._interval_s, until).run(connection):
                _log.warning("%d jobs whose leases ran out are back at the front of %s", len(back), queue)
                more = True
        return more


class Sweep:
    """Looks, a part at a time, for started jobs that have no lease at all."""

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = queues

    def __call__(self, connection: Redis) -> None:
        for queue in self._queues:
            if back := sweep(queue, SWEEP_INTERVAL_S).run(connection):
                _log.warning("%d started jobs without a lease are back at the front of %s", len(back), queue)


class Strays:
    """Looks, a part at a time, for jobs that wait or run, and lie nowhere. Says once of each scheduled one that its
    time is gone, when it sees that for the second time: RQ writes the status of what it tries again before the time.
    """

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = queues
        self._seen: set[str] = set()
        self._said: set[str] = set()

    def __call__(self, connection: Redis) -> None:
        back, timeless = strays(self._queues, SWEEP_INTERVAL_S, STRAY_AFTER_S).run(connection)
        if back:
            where = ", ".join(self._queues)
            _log.error("%d jobs lay on no queue, as after the server evicted it, and are back on %s", len(back), where)
        if new := [each for each in timeless if each in self._seen and each not in self._said]:
            _log.error(
                "%d scheduled jobs never run, as their registry is gone, and with it their time, as after the server "
                "evicted it: enqueue them again: %s", len(new), " ".join(new)
            )  # fmt: skip
        for known, more in ((self._seen, timeless), (self._said, new)):
            if len(known) > _MOST_KNOWN:
                known.clear()
            known.update(more)
