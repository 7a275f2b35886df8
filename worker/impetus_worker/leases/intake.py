"""When to claim, from which queues and how much. Decides; the claim itself is `claims.Claims`'.

Knows what it has heard of each queue: whether it may have jobs, whether RQ is suspended, whether a suspect waits for
this worker to have nothing in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .doorbell import Doorbell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from ..batches.batcher import Room
    from .claims import Claim

_SUSPENDED_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Up to so many jobs from these queues, in this order."""

    queues: Sequence[str]
    jobs: int


class Intake:
    """`queues`: the one whose callers wait, then the one for bulk. Times are of `time.monotonic()`, in seconds."""

    def __init__(self, connection: Redis, queues: Sequence[str]) -> None:
        self._queues = tuple(queues)
        self._bells = [Doorbell(connection, queue) for queue in queues]
        self._may_have_jobs = dict.fromkeys(queues, True)
        self._suspended_until = 0.0
        self._paused = False
        self.drain = False
        """A suspect comes next, and waits until nothing is in flight."""

    def wanted(self, room: Room, now: float) -> Wanted | None:
        """What to claim now, if anything: bulk only where there is room for it too."""
        if self._paused or now < self._suspended_until:
            return None
        queues, jobs = (self._queues, room.bulk) if room.bulk else (self._queues[:1], room.interactive)
        return Wanted(queues, jobs) if jobs and any(self._may_have_jobs[queue] for queue in queues) else None

    def learn(self, wanted: Wanted, claim: Claim, now: float) -> None:
        """Takes note of what a claim told, besides its jobs."""
        self.drain = claim.drain
        if claim.suspended:
            self._suspended_until = now + _SUSPENDED_WAIT_S
        elif len(claim.jobs) < wanted.jobs and not claim.drain and not any(job.suspect for job in claim.jobs):
            self._may_have_jobs.update(dict.fromkeys(wanted.queues, False))

    def bells(self, room: Room, now: float) -> list[Doorbell]:
        """The doorbells to wait for: of queues that were found empty, and for whose jobs there is room."""
        if self._paused or now < self._suspended_until:
            return []
        armed = []
        for bell, places in zip(self._bells, (room.interactive, room.bulk), strict=True):
            if bell.armed or (places and not self._may_have_jobs[bell.queue]):
                bell.arm()
                armed.append(bell)
        return armed

    def hear(self, bell: Doorbell) -> None:
        """A doorbell is readable."""
        self._may_have_jobs[bell.queue] |= bell.rang()

    def is_dry(self, now: float) -> bool:
        """Whether no queue is known to have anything that may be claimed."""
        return self._paused or not any(self._may_have_jobs.values()) or now < self._suspended_until

    def pause(self, paused: bool) -> None:
        """Claims nothing from now on, or claims again."""
        self._paused = paused
        self.hang_up()

    def hang_up(self) -> None:
        """The connection was lost, or is about to be: nothing that was heard holds any more."""
        for bell in self._bells:
            bell.close()
        self._may_have_jobs = dict.fromkeys(self._queues, True)
