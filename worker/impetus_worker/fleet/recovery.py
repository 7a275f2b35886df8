"""How a supervisor says in Redis that it saw a worker's process end: once, however long the server is away.

What speaks to a server is imported at the first death: most supervisors never see one.
"""

from __future__ import annotations

import logging
import queue
from itertools import chain
from typing import TYPE_CHECKING

from ..companions.companion import Companion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..settings import Role

_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


class DeathReports(Companion):
    """`report()` waits for nothing. `roles` are those that the supervisor runs, `url` their server's."""

    def __init__(self, url: str, roles: Sequence[Role]) -> None:
        super().__init__("death-reports", lambda broken: None)
        self._url = url
        self._roles = roles
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
        if (first := self._deaths.get()) is None:
            return
        from impetus_producer.contract import ROLE_QUEUES

        from ..companions.link import PASSING, Link, Reachability, client
        from ..leases.claims import bury

        link = Link(self.name, lambda: client(self._url, _TIMEOUT_S), Reachability())
        queues = [queue for role in self._roles for queue in ROLE_QUEUES[role]]
        for worker, begun in chain([first], iter(self._deaths.get, None)):
            while not self.stopped.is_set():
                try:
                    back, left = link.run(bury(worker, queues, begun))
                except PASSING as error:
                    self.stopped.wait(link.failed(error))
                else:
                    if back:
                        _log.warning("%d jobs of %s, which died, are back on their queues", len(back), worker)
                    if not left:
                        break
