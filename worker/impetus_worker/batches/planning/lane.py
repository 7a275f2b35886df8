"""What waits on one lane of an engine for batches: interactive texts, or bulk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .quarantine import Quarantine

if TYPE_CHECKING:
    from .backlog import Backlog, Row


@dataclass(eq=False, slots=True)
class Lane:
    """Texts of one urgency: those that wait for a batch, and the suspects among them."""

    urgent: bool
    backlog: Backlog
    quarantine: Quarantine[Row] = field(default_factory=Quarantine)
    closes_at: float = 0.0
    """When what is in the backlog goes out though it fills no batch."""
    in_engine: int = 0
    """How many batches."""
    jobs: int = 0
    """How many are read and not ended."""
    batches_a_job: float = 1.0
    """The moving average."""

    def run_again(self, rows: list[Row], *, suspect: bool) -> None:
        """As the next, without waiting for more; suspects remain that."""
        self.closes_at = 0.0
        if suspect:
            self.quarantine.put_back([row for row in rows if not row.owner.ended])
        else:
            self.backlog.put_first(rows)
