"""When to claim, from which queues and how much. Decides; the claim itself is `claims.Claims`'.

Knows what it has heard of each queue: whether it may have jobs, and whether RQ is suspended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..batches.batcher import Room
    from .claims import Claim

SUSPENDED_WAIT_S = 1.0
_LOOK_AGAIN_S = 30.0
"""A queue that was found empty is looked at again after this, should its bell have been lost."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Up to so many jobs from these queues, in this order."""

    queues: Sequence[str]
    jobs: int


class Intake:
    """`bells`: for each queue, the one whose callers wait first and then the one for bulk, how to ask to be told when
    it has a job. Times are the loop's, in seconds.
    """

    def __init__(self, bells: Mapping[str, Callable[[], None]]) -> None:
        self._queues = tuple(bells)
        self._bells = bells
        self._empty_since: dict[str, float | None] = dict.fromkeys(bells)
        """None: the queue may have jobs."""
        self._suspended_until = 0.0
        self._paused = False
        self.has_backlog = False
        """Whether the last claim left jobs where they were, so that the next one finds some for certain."""

    def wanted(self, room: Room, now: float) -> Wanted | None:
        """What to claim now, if anything: bulk only where there is room for it too."""
        if self._paused or now < self._suspended_until:
            return None
        queues, jobs = (self._queues, room.bulk) if room.bulk else (self._queues[:1], room.interactive)
        if jobs and any(self._may_have_jobs(queue, now) for queue in queues):
            return Wanted(queues, jobs)
        bulk = self._queues[1:]
        # Of a backlog alone: the last jobs are for whoever has a place for them.
        ahead = room.ahead if self.has_backlog and any(self._may_have_jobs(queue, now) for queue in bulk) else 0
        return Wanted(bulk, ahead) if ahead else None

    def _may_have_jobs(self, queue: str, now: float) -> bool:
        since = self._empty_since[queue]
        return since is None or now - since > _LOOK_AGAIN_S

    def learn(self, wanted: Wanted, claim: Claim, now: float) -> None:
        """Takes note of what a claim told, besides its jobs. A queue that is empty is listened to from now on."""
        self.has_backlog = claim.more
        if claim.suspended:
            self._suspended_until = now + SUSPENDED_WAIT_S
        elif not claim.more:
            for queue in wanted.queues:
                self._empty_since[queue] = now
                self._bells[queue]()

    def hear(self, queue: str) -> None:
        """Its bell rang."""
        self._empty_since[queue] = None

    def wakes_at(self, now: float) -> float | None:
        """When there may be something to claim though no bell rings."""
        return self._suspended_until if now < self._suspended_until else None

    def is_dry(self, now: float) -> bool:
        """Whether no queue is known to have anything that may be claimed."""
        return (
            self._paused
            or now < self._suspended_until
            or not any(self._may_have_jobs(queue, now) for queue in self._queues)
        )

    def look_again(self) -> None:
        """The queues may have jobs, whatever was found before."""
        self._empty_since = dict.fromkeys(self._queues)

    def pause(self, paused: bool) -> None:
        """Claims nothing from now on, or claims again: the queues may have jobs then."""
        self._paused = paused
        self.look_again()
