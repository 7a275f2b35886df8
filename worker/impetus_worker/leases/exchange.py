"""Scripts sent to Redis without waiting: the worker's loop goes on, and reads the answers when they are there.

Knows how redis-py talks; knows nothing of what the scripts do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from .claims import Call

_PATIENCE_S = 30.0
"""A server that answers nothing for so long is as good as gone."""


class Exchange:
    """At most one at a time: a few calls sent together, run by the server in that order, and answered together."""

    def __init__(self, connection: Redis) -> None:
        self._pool = connection.connection_pool
        self._connection: Any = None
        self._known: set[str] = set()
        """The scripts that the server is known to have, since this connection was made."""
        self._sent: list[Call[Any]] = []
        self._sent_at = 0.0

    @property
    def pending(self) -> bool:
        """Whether answers are awaited; the exchange is then readable once they are there."""
        return bool(self._sent)

    def send(self, calls: Sequence[Call[Any]]) -> None:
        """Raises `RedisError`, and then it is unknown what the server has run."""
        assert not self._sent
        if self._connection is None:
            self._connection = self._pool.get_connection()
            self._known.clear()
        for call in calls:
            if call.script.sha not in self._known:
                self._connection.send_command("SCRIPT", "LOAD", call.script.script)
                self._connection.read_response()
                self._known.add(call.script.sha)
        commands = [("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.arguments) for call in calls]
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        self._sent, self._sent_at = list(calls), time.monotonic()

    def fileno(self) -> int:
        """The socket that becomes readable with the answers; redis-py has no public name for it."""
        return int(self._connection._sock.fileno())

    def receive(self) -> list[Any]:
        """The answer of each call, or the `ResponseError` that the server gave for it. Waits for them if need be.

        Raises `RedisError` when the connection is lost, and then it is unknown what the server has run.
        """
        answers: list[Any] = []
        for call in self._sent:
            try:
                answers.append(call.read(self._connection.read_response(disable_decoding=True)))
            except ResponseError as error:
                answers.append(error)
        self._sent = []
        return answers

    def check(self) -> None:
        """Raises redis-py's `TimeoutError` when the answers are overdue."""
        if self._sent and time.monotonic() - self._sent_at > _PATIENCE_S:
            raise RedisTimeoutError(f"no answer for {_PATIENCE_S:g} s")

    def close(self) -> None:
        """Hangs up; answers still awaited are never read."""
        self._sent = []
        if self._connection is not None:
            self._connection.disconnect()
            self._pool.release(self._connection)
            self._connection = None
