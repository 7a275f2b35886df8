"""Hearing of a new job at once without taking it: a blocking peek that an event loop can wait for.

`BLMOVE q q LEFT LEFT` waits for an element, moves it onto its own place and so takes nothing. It is sent on a
connection of its own, and its answer makes the connection's socket readable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis

_WAIT_S = 30
"""How long the server waits before it answers that there is nothing: what ends a peek whose connection died."""


class Doorbell:
    """Rings when `queue` has a job. `armed` between `arm()` and the answer."""

    def __init__(self, connection: Redis, queue: str) -> None:
        self.queue = queue
        self.armed = False
        self._pool = connection.connection_pool
        self._key = f"rq:queue:{queue}"
        self._connection: Any = None

    def arm(self) -> None:
        """Starts listening, if it does not listen yet."""
        if not self.armed:
            if self._connection is None:
                self._connection = self._pool.get_connection()
            self._connection.send_command("BLMOVE", self._key, self._key, "LEFT", "LEFT", _WAIT_S)
            self.armed = True

    def fileno(self) -> int:
        """The socket that becomes readable with the answer; redis-py has no public name for it."""
        return int(self._connection._sock.fileno())

    def rang(self) -> bool:
        """Reads the answer, after the socket became readable: whether there is a job."""
        answer = self._connection.read_response(disable_decoding=True)
        self.armed = False
        return answer is not None

    def close(self) -> None:
        """Hangs up. Without it a peek would be left to move an element on behalf of nobody."""
        if self._connection is not None:
            self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None
        self.armed = False
