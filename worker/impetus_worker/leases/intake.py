"""When to claim, from which queues and how much. Decides; the claim itself is `claims.Claims`'.

Knows what it has heard of each queue: whether it may have jobs, what share of it is this worker's, whether what was
left to others moves, and whether RQ is suspended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .portions import ALONE, Portion, Share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..batches.batcher import Held, Room
    from .claims import Claim, Left

SUSPENDED_WAIT_S = 1.0
_LOOK_AGAIN_S = 30.0
"""A queue that was found empty is looked at again after this, should its bell have been lost."""
_ASK_AGAIN_S = (0.1, 1.0)
"""So long jobs are left to others before it is asked whether they took them: the least, and the most for a worker whose
device is busy meanwhile, as one of those that it has takes so long."""
_STILL_S = (0.25, 5.0)
"""Jobs that were left to others, and of which none was taken or ended for so long, are anybody's: of a queue whose
callers wait, and of bulk. Or for as long as this worker needs for one of them."""
_ALONE_FOR = 12
"""So many times that long it then takes as if it were alone."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Up to so many jobs from these queues, in this order, and of each no more than its portion."""

    queues: Sequence[str]
    jobs: int
    portions: Sequence[Portion] = ()


@dataclass(slots=True)
class _Queue:
    """What is known of one."""

    still_s: float
    empty_since: float | None = None
    """None: it may have jobs."""
    share: Share = ALONE
    ask_from: float = -math.inf
    """It is left to others until then, unless fewer are held than `held` by now."""
    held: int = 0
    left: Left | None = None
    """What was seen of it last, since jobs are left to others; None: none are."""
    still_since: float = 0.0
    alone_until: float = -math.inf

    def portion(self, held: Held, now: float) -> Portion:
        share = self.share if now >= self.alone_until else ALONE
        return Portion(share, held.jobs, held.job_s)

    def leave_to_others(self, left: Left, portion: Portion, taken: int, now: float) -> None:
        """They are to take the rest, and are looked at meanwhile."""
        self.held = portion.held + taken
        least_s, most_s = _ASK_AGAIN_S
        self.ask_from = now + (min(max(portion.job_s, least_s), most_s) if self.held else least_s)
        # More may have come since, so that as many or more are open though some ended.
        if self.left is None or left.open < self.left.open or left.first != self.left.first:
            self.still_since = now
        self.left = left
        if now - self.still_since >= (still_s := max(self.still_s, portion.job_s)):
            self.left, self.alone_until = None, now + _ALONE_FOR * still_s

    def look_again(self) -> None:
        self.empty_since, self.ask_from, self.left = None, -math.inf, None


class Intake:
    """`bells`: for each queue, the one whose callers wait first and then the one for bulk, how to ask to be told when
    it has a job. Times are the loop's, in seconds.
    """

    def __init__(self, bells: Mapping[str, Callable[[], None]]) -> None:
        self._bells = bells
        self._queues = {name: _Queue(still_s) for name, still_s in zip(bells, _STILL_S, strict=True)}
        self._names = tuple(bells)
        self._unheard: set[str] = set()
        """Queues that were found empty, and whose bells were not asked yet."""
        self._suspended_until = 0.0
        self._paused = False
        self.has_backlog = False
        """Whether the last claim left jobs where they were for want of room, so that the next one finds some for
        certain."""

    def share(self, shares: Sequence[Share]) -> None:
        """What of each queue is this worker's from now on, in their order."""
        for queue, share in zip(self._queues.values(), shares, strict=True):
            queue.share = share

    def wanted(self, room: Room, now: float) -> Wanted | None:
        """What to claim now, if anything: bulk only where there is room for it too."""
        if self._paused or now < self._suspended_until:
            return None
        held = dict(zip(self._names, room.held, strict=True))
        due = [
            name
            for name, queue in self._queues.items()
            if self._may_have_jobs(name, now) and (now >= queue.ask_from or held[name].jobs < queue.held)
        ]
        offers = [(self._names, room.bulk) if room.bulk else (self._names[:1], room.interactive)]
        if self.has_backlog:  # the last jobs are for whoever has a place for them
            offers += [(self._names[:1], room.in_line), (self._names[1:], room.ahead)]
        for names, jobs in offers:
            if jobs and any(name in due for name in names):
                return Wanted(names, jobs, tuple(self._queues[name].portion(held[name], now) for name in names))
        return None

    def _may_have_jobs(self, name: str, now: float) -> bool:
        since = self._queues[name].empty_since
        return since is None or now - since > _LOOK_AGAIN_S

    def learn(self, wanted: Wanted, claim: Claim, now: float) -> None:
        """Takes note of what a claim told, besides its jobs. A queue that is empty is to be listened to."""
        if claim.suspended:
            self.has_backlog = False
            self._suspended_until = now + SUSPENDED_WAIT_S
            return
        self.has_backlog = any(left.waiting and not left.for_others for left in claim.left)
        for name, portion, left in zip(wanted.queues, wanted.portions, claim.left, strict=True):
            queue = self._queues[name]
            if not left.waiting:
                queue.look_again()
                queue.empty_since = now
                self._unheard.add(name)
            elif left.for_others:
                queue.leave_to_others(left, portion, sum(job.queue == name for job in claim.jobs), now)

    def listen(self) -> None:
        """Asks to be told of the queues that were found empty, each once."""
        while self._unheard:
            self._bells[self._unheard.pop()]()

    def hear(self, queue: str) -> None:
        """Its bell rang."""
        self._queues[queue].empty_since = None

    def wakes_at(self, now: float) -> float | None:
        """When there may be something to claim though no bell rings."""
        if now < self._suspended_until:
            return self._suspended_until
        left = (queue.ask_from for name, queue in self._queues.items() if self._may_have_jobs(name, now))
        return min((at for at in left if at > now), default=None)

    def is_dry(self, now: float) -> bool:
        """Whether no queue is known to have anything that may be claimed."""
        return (
            self._paused
            or now < self._suspended_until
            or not any(self._may_have_jobs(name, now) for name in self._names)
        )

    def look_again(self) -> None:
        """The queues may have jobs, whatever was found before."""
        for queue in self._queues.values():
            queue.look_again()

    def pause(self, paused: bool) -> None:
        """Claims nothing from now on, or claims again: the queues may have jobs then."""
        self._paused = paused
        self.look_again()
