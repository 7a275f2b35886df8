"""What an embedding engine holds, which of it has begun, and whose time passes.

Of the batches that it was given the engine runs the oldest urgent one first, and the others in order. So one of them
has begun, and only its jobs spend the engine's time; the others wait.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .batcher import LOADING_PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Set

    from ..leases.claims import ClaimedJob
    from .planning.backlog import OpenEmbedding, Row
    from .planning.cost import CostModel

_LEAST_PATIENCE_S = 60.0
_BATCHES_OF_PATIENCE = 10
"""So many times what its batch should cost a silent engine is waited for."""
_UNKNOWN_PATIENCE_S = 300.0
"""While no batch has run yet: a device may compile its kernels in the first."""
_UNWANTED_PATIENCE_S = 5.0
"""Beside the cost of a batch that nobody wants any more, or that has outrun the timeout of a job."""


@dataclass(eq=False, slots=True)
class Batch:
    """Rows that run together, all of one lane and for one model."""

    rows: list[Row]
    owners: set[OpenEmbedding]
    model: str
    urgent: bool
    suspect: bool
    overdue: bool = False
    """Whether a job ran out of time while the engine was at it."""
    parked: bool = False
    """Whether the engine has to load its model first."""
    packed: bool = False
    """Whether the device lays several rows in one."""

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

    @property
    def padded_tokens(self) -> int:
        """That the device runs; what is left empty of packed rows aside."""
        if self.packed:
            return self.tokens
        return max(len(row.ids) for row in self.rows) * len(self.rows)


class EngineQueue:
    """Batches by the id of their work. `now`: as in `Batcher`."""

    def __init__(self) -> None:
        self._batches: dict[int, Batch] = {}
        """In the order in which they were given."""
        self._running: int | None = None
        self._running_since = 0.0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches.values())

    @property
    def running(self) -> Batch | None:
        """The batch that has begun."""
        return None if self._running is None else self._batches[self._running]

    def give(self, work_id: int, batch: Batch, now: float) -> None:
        self._batches[work_id] = batch
        self._begin_next(now)

    def park(self, work_id: int) -> None:
        """The engine says that the batch waits for its model. An unknown id is no error."""
        if work_id in self._batches:
            self._batches[work_id].parked = True

    def take_back(self, work_id: int, now: float) -> Batch | None:
        """The batch, which is done, or None if the engine did not hold it."""
        batch = self._batches.pop(work_id, None)
        if batch is None:
            return None
        # Its time, even if another was thought to run: one that was given while the engine began with this.
        self._charge(batch, now)
        if work_id == self._running:
            self._running = None
            self._begin_next(now)
        return batch

    def take_all(self, now: float) -> tuple[Batch | None, list[Batch]]:
        """The engine is no more: (what it had begun, what waited behind that)."""
        running = self.running
        if running is not None:
            self._charge(running, now)
        others = [batch for batch in self if batch is not running]
        self._batches.clear()
        self._running = None
        return running, others

    def _begin_next(self, now: float) -> None:
        if self._running is None and self._batches:
            urgent = (work_id for work_id, batch in self._batches.items() if batch.urgent)
            self._running, self._running_since = next(urgent, next(iter(self._batches))), now
            for owner in self._batches[self._running].owners:
                owner.engine_s = owner.engine_s or 0.0

    def _charge(self, batch: Batch, now: float) -> None:
        for owner in batch.owners:
            owner.engine_s = (owner.engine_s or 0.0) + now - self._running_since
        self._running_since = now

    def engine_s(self, owner: OpenEmbedding, now: float) -> float | None:
        """How long the engine was at batches with rows of the job; None if it has begun none."""
        if owner.engine_s is None:
            return None
        is_running = self.running is not None and owner in self.running.owners
        return owner.engine_s + (now - self._running_since if is_running else 0.0)

    def overdue(self, now: float) -> list[ClaimedJob]:
        """The jobs that have spent more of the engine's time than their timeout allows."""
        since_s, late = now - self._running_since, []
        for owner in self.running.owners if self.running is not None else ():
            timeout_s = owner.job.timeout_s
            if not owner.ended and timeout_s is not None and (owner.engine_s or 0.0) + since_s > timeout_s:
                late.append(owner.job)
        return late

    def begun(self) -> Set[str]:
        """The ids of the jobs that the engine is running."""
        running = self.running
        return {owner.job.id for owner in running.owners if not owner.ended} if running is not None else set()

    def patience_s(self, costs: Mapping[str, CostModel]) -> float:
        """How long the engine may be silent before it must be taken for hung."""
        batch = self.running
        if batch is None:
            return math.inf
        if any(each.parked for each in self):
            return LOADING_PATIENCE_S
        expected_s = costs[batch.model].expected_s(batch.padded_tokens)
        if batch.overdue or (expected_s is not None and all(owner.ended for owner in batch.owners)):
            return _UNWANTED_PATIENCE_S + 2 * (expected_s or 0.0)
        if expected_s is None:
            return _UNKNOWN_PATIENCE_S
        return max(_LEAST_PATIENCE_S, _BATCHES_OF_PATIENCE * expected_s)
