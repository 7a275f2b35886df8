"""Keeps the leases of jobs in flight alive, from a thread of its own, for as long as the engine makes progress.

The loop that claims and finishes may be held up, by a callback for instance; leases must not run out for that.
"""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .claims import ClaimedJob, Claims


class LeaseKeeper:
    """`jobs`: the jobs in flight; `is_alive`: whether their engine makes progress; `heartbeat`: the worker's own.

    All three are called from the keeper's thread. An error there is raised by the next `check()`.
    """

    def __init__(
        self,
        claims: Claims,
        jobs: Callable[[], Iterable[ClaimedJob]],
        is_alive: Callable[[], bool],
        heartbeat: Callable[[], None],
        interval_s: float,
    ) -> None:
        self._claims = claims
        self._jobs = jobs
        self._is_alive = is_alive
        self._heartbeat = heartbeat
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._lost: SimpleQueue[ClaimedJob] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
        self._log = logging.getLogger(__name__)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def check(self) -> list[ClaimedJob]:
        """The jobs whose lease was found lost since the last call. Raises what the thread met."""
        if self._error is not None:
            raise self._error
        lost = []
        while not self._lost.empty():
            lost.append(self._lost.get())
        return lost

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                # Leases first: a server out of memory refuses heartbeats.
                jobs = list(self._jobs())
                if jobs and self._is_alive():
                    lost = set(self._claims.renew(jobs))
                    for job in jobs:
                        if job.id in lost:
                            self._lost.put(job)
                self._heartbeat()
            except RedisError as error:
                # The server may be back before the leases are over; the loop reports what it meets itself.
                self._log.warning("the leases could not be renewed: %s", error)
            except Exception as error:  # noqa: BLE001 - raised again by check(), in the loop
                self._error = error
                return
