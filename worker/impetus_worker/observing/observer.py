"""Who looks on while a worker works: the loop says what happens, and whoever wants to makes something of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from impetus_backends.protocol import Event, Work

    from ..leases.claims import ClaimedJob
    from ..leases.outcomes import Outcome


class Observer:
    """Makes nothing of it. Times are the loop's, in seconds."""

    def took(self, jobs: Iterable[ClaimedJob], now: float) -> None:
        """These jobs were claimed."""

    def ended(self, outcome: Outcome, now: float) -> None:
        """It is known how a run ends."""

    def admitted(self, work: Work) -> None:
        """The engine is given this."""

    def heard(self, event: Event) -> None:
        """The engine said this."""

    def lost_lease(self, job: ClaimedJob) -> None:
        """A run turned out to be another's by now."""

    def engine_died(self) -> None:
        """The engine ended by itself, or was ended."""

    def look(self, now: float, begun: Callable[[], Collection[str]], held: int) -> None:
        """The loop turned: which jobs the engine has begun, of so many held."""

    def close(self) -> None:
        """The worker ends."""
