"""When something that ended by itself is started again, and when it is given up."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """With something that ends by itself again and again."""

    healthy_s: float = 60.0
    """Whoever lived so long starts with a clean slate."""
    most_in_a_row: int = 10
    longest_pause_s: float = 30.0
    after_shutdown_s: float = 2.0
    """The pause after a worker that somebody told to shut down."""

    def pause_s(self, in_a_row: int) -> float:
        """How long to wait after so many ends in a row; infinity: for ever."""
        if in_a_row >= self.most_in_a_row:
            return math.inf
        return 0.0 if in_a_row == 1 else float(min(self.longest_pause_s, 2.0 ** min(in_a_row - 2, 100)))


@dataclass(slots=True)
class Lives:
    """One such thing's, on the monotonic clock."""

    start_at: float = 0.0
    """When to start it next; infinity when it is over."""
    started_at: float = 0.0
    in_a_row: int = 0
    """Its last ends that each came soon after a start."""

    def ended(self, now: float, patience: Patience) -> float:
        """It ended by itself. The pause before its next start; infinity: it is given up."""
        self.in_a_row = 1 if now - self.started_at > patience.healthy_s else self.in_a_row + 1
        pause_s = patience.pause_s(self.in_a_row)
        self.start_at = now + pause_s
        return pause_s

    def end(self) -> None:
        self.start_at = math.inf

    @property
    def is_over(self) -> bool:
        return self.start_at == math.inf
