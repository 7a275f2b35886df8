"""Hearing of a new job at once without taking it: a blocking peek in a thread of its own.

`BLMOVE q q LEFT LEFT` waits for an element, moves it onto its own place and so takes nothing. The server answers after
`WAIT_S` in any case; where no answer comes by then the connection is dead, whatever the network says of it, and another
one is made.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..companions.companion import Companion
from ..companions.link import PASSING, Link
from ..inbox import Rang

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

WAIT_S = 10
ANSWER_S = 15
"""The client's patience for an answer: longer than the server waits."""


class Doorbell(Companion):
    """Tells `Rang` once for each `listen()`, as soon as `queue` has a job."""

    def __init__(self, link: Link, queue: str, tell: Callable[[object], None]) -> None:
        super().__init__(f"doorbell of {queue}", tell)
        self._link = link
        self._queue = queue
        self._key = f"rq:queue:{queue}"
        self._listening = threading.Event()

    def listen(self) -> None:
        self._listening.set()

    def stop(self) -> None:
        super().stop()
        self._listening.set()

    def run(self) -> None:
        while True:
            self._listening.wait()
            if self.stopped.is_set():
                return
            try:
                peeked = self._link.ask(self._peek)
            except PASSING as error:
                self.stopped.wait(self._link.failed(error))
                continue
            if peeked is not None:
                self._listening.clear()
                self.tell(Rang(self._queue))

    def _peek(self, connection: Redis) -> Any:
        return connection.blmove(self._key, self._key, WAIT_S, "LEFT", "LEFT")
