"""The ledgers of several servers as one, for whoever ends jobs and need not know where they lie."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .claims import ClaimedJob
    from .ledger import Ledger
    from .outcomes import News


class Ledgers:
    """In the order of `ClaimedJob.server`."""

    def __init__(self) -> None:
        self._each: list[Ledger] = []

    def add(self, ledger: Ledger) -> None:
        self._each.append(ledger)

    @property
    def open(self) -> Mapping[str, ClaimedJob]:
        """By id, the runs of which it is not known yet how they end."""
        return ChainMap(*(ledger.open for ledger in self._each))

    @property
    def open_jobs(self) -> int:
        """How many these are."""
        return sum(len(ledger.open) for ledger in self._each)

    def note(self, news: Iterable[News]) -> None:
        """Takes note of what there is to tell of jobs, each where it was claimed."""
        told = list(news)
        for server, ledger in enumerate(self._each):
            if own := [each for each in told if each.job.server == server]:
                ledger.note(own)

    def is_held_elsewhere(self, job: ClaimedJob) -> bool:
        """Whether a job of another server has the same id."""
        return len(self._each) > 1 and any(
            job.id in ledger.held for server, ledger in enumerate(self._each) if server != job.server
        )
