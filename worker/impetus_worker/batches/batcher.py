"""What the worker's loop asks of a role: how much to claim, what to run next, and which jobs that completed.

Two roles implement `Batcher`: `EmbeddingBatcher` packs the texts of many jobs into batches, `GenerationBatcher` lets
jobs join the running batch one by one. Neither knows Redis or processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence, Set

    from impetus_backends.protocol import Event, Work
    from impetus_producer.contract import MeasuredCost

    from ..inbox import ReadElsewhere
    from ..leases.claims import ClaimedJob
    from ..leases.outcomes import Failed, News, Outcome, Stopped


LOADING_PATIENCE_S = 600.0
"""How long an engine may be silent while a job waits for its model, which may be loading."""


@dataclass(frozen=True, slots=True)
class Held:
    """How many jobs of a lane are taken in and not ended, and about how long the device needs for one."""

    jobs: int = 0
    job_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Room:
    """How many jobs to claim now: from the queue whose callers wait, and from both."""

    interactive: int
    bulk: int
    ahead: int = 0
    """Where there is no room for those: bulk jobs of which the batcher may choose who is next."""
    in_line: int = 0
    """Where there is no room for those: jobs whose callers wait, of which each gets the next place at once."""
    held: tuple[Held, Held] = (Held(), Held())
    """Of the lane whose callers wait, and of bulk."""


class Batcher(Protocol):
    """One thread calls it. `now` is in seconds of one clock, which should stand still while the machine sleeps."""

    def room(self) -> Room:
        """How many jobs may be claimed now, beside those taken in. `bulk` is never more than `interactive`."""
        ...

    def add(self, jobs: Sequence[ClaimedJob]) -> None:
        """Takes jobs in, and does not look at them yet."""

    def read(self, now: float) -> list[Outcome]:
        """Reads what was taken in, for about a hundredth of a second; returns how those jobs end that end by it, such
        as a `Failed` for a bad request."""
        ...

    def take_back(self, read: ReadElsewhere, now: float) -> list[Outcome]:
        """Takes a job that was too long for `read`, now that it is read; returns how it ends, if it ends by it."""
        ...

    def unread(self) -> Set[str]:
        """The ids of the jobs that a `read` may look at: to blame beside `begun()` if the process dies in it."""
        ...

    def next_work(self, now: float) -> Work | None:
        """What the engine should be given now, if anything. Ask again until there is nothing."""

    @property
    def cost(self) -> MeasuredCost | None:
        """What batches cost its device, as measured; None where it does not batch, or nothing ran yet."""

    def wakes_at(self) -> float | None:
        """When there will be something to read or to run though nothing else happens; a time long past for now."""

    def absorb(self, event: Event, now: float) -> Sequence[News]:
        """Takes what the engine says; returns what there is to tell of jobs, their outcomes last."""
        ...

    # -- ending jobs before their time -------------------------------------------------------------------------------

    def interrupt(self, outcome: Failed | Stopped) -> tuple[list[int], Sequence[News]]:
        """Ends a job: (the work to cancel in the engine, what there is to tell now). `Failed`: it ran out of time.

        Where what the engine has made of it can be kept, the outcome comes from a later `absorb` or `engine_died`.
        """
        ...

    def forget(self, job_ids: Collection[str]) -> list[int]:
        """Forgets jobs, wherever they are, and tells nothing of them; returns the work to cancel in the engine."""
        ...

    def overdue(self, now: float) -> list[ClaimedJob]:
        """The jobs that have had more of the engine's time than their timeout allows, and are to be interrupted."""
        ...

    def out_of_line(self, now: float) -> list[ClaimedJob]:
        """The jobs that wait in the engine for a place, and did not get one as soon as was to be expected: others may
        have one for them."""
        ...

    def engine_s(self, job_id: str, now: float) -> float | None:
        """How many seconds the engine has spent on the job, others that it ran together with it included.

        Not counted: what the job waited, also in the engine, behind others or for a model; and what it ran before a
        death of the engine that it is suspected of, since it runs anew. None if the engine has spent none.
        """
        ...

    # -- what the engine does ----------------------------------------------------------------------------------------

    def has_begun(self, job_id: str) -> bool:
        """Whether the engine has begun any of the job that it will not have to begin again if it lives."""
        ...

    def begun(self) -> Set[str]:
        """The ids of the jobs that would be to blame if the process died now: those that the engine is running."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether the engine holds anything. One that holds nothing may be silent for ever."""
        ...

    def patience_s(self, now: float) -> float:
        """How long the engine, with what it holds now, may give no sign of life before it must be taken for hung.

        Less where nobody wants any longer what it is doing. Infinite where it holds nothing.
        """
        ...

    def engine_died(self, now: float, *, suspect: bool) -> Sequence[News]:
        """All that the engine held runs again. `suspect`: something of it may have killed or hung the engine.

        At the first such death that an item meets it runs again as before. Items that meet another run in ever smaller
        groups with nothing beside them. Returns, among others, the `Failed` of those now known to be poison.
        """
        ...
