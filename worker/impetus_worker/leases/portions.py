"""How much of a queue is one worker's to take, beside others who take from it too.

Pure numbers: a worker knows its own share of what the fleet does in a second, and `lua/claim.lua` what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_BUSY_S = 0.25
"""Beside one job a worker is not to hold less than its device does in so long: more than until it asks again."""
_LEAST_JOB_S = 1e-4


@dataclass(frozen=True, slots=True)
class Share:
    """Of what all who serve a queue do in a second: this worker's part, and the largest of another's."""

    own: float = 1.0
    best: float = 0.0


ALONE = Share()


@dataclass(frozen=True, slots=True)
class Portion:
    """What a claim is to leave to others, if anything.

    Of all that is left of a queue, what is running included, a worker holds up to half of its share, so that something
    is left to make good for shares that are not quite so; and at least what keeps its device busy until it asks again.
    But never a job that others, after all that lies before them, would end sooner.
    """

    share: Share = ALONE
    held: int = 0
    """Jobs of the queue that it has, not ended."""
    job_s: float = 1.0
    """About how long one of them takes it."""

    @property
    def numbers(self) -> tuple[str | int, ...]:
        """As `lua/claim.lua` has them."""
        return (
            f"{self.share.own:.6f}",
            f"{self.share.best:.6f}",
            self.held,
            1 + math.ceil(_BUSY_S / max(self.job_s, _LEAST_JOB_S)),
        )


WHOLE = Portion()
