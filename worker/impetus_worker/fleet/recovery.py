"""How a supervisor says in Redis that it saw a worker's process end: once, however long the server is away."""

from __future__ import annotations

import logging
import queue
from typing import TYPE_CHECKING

from ..companions.companion import Companion
from ..companions.link import PASSING, Link
from ..leases.claims import bury

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger(__name__)


class DeathReports(Companion):
    """`report()` waits for nothing. `queues` are those of the roles that the supervisor runs."""

    def __init__(self, link: Link, queues: Sequence[str]) -> None:
        super().__init__("death-reports", lambda broken: None)
        self._link = link
        self._queues = queues
        self._deaths: queue.SimpleQueue[tuple[str, Sequence[str]] | None] = queue.SimpleQueue()

    def report(self, worker: str, begun: Sequence[str]) -> None:
        """This worker's process was seen to end while its engine was running these jobs."""
        self._deaths.put((worker, begun))

    def close(self, patience_s: float) -> None:
        """Gives what is to be reported so long. What is not, lapses: leases run out, and nobody is blamed."""
        self._deaths.put(None)
        self.join(patience_s)
        self.stop()

    def run(self) -> None:
        while (death := self._deaths.get()) is not None:
            while not self.stopped.is_set():
                try:
                    back = self._link.run(bury(death[0], self._queues, death[1]))
                except PASSING as error:
                    self.stopped.wait(self._link.failed(error))
                else:
                    if back:
                        _log.warning("%d jobs of %s, which died, are back on their queues", len(back), death[0])
                    break
