"""Takes the loop's calls to the server and brings the answers, so that the loop goes on meanwhile.

At most one exchange at a time: a few calls sent together, run by the server in that order, and answered together.
Knows nothing of what the scripts do.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..companions.companion import Companion
from ..companions.link import PASSING, Link
from ..inbox import Answered, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from .scripts import Call


class Courier(Companion):
    """Tells an `Answered` or an `Unanswered` for everything that it is sent with."""

    def __init__(self, link: Link, tell: Callable[[object], None]) -> None:
        super().__init__("courier", tell)
        self._link = link
        self._line = Line(link.connection)
        self._errands: queue.SimpleQueue[Sequence[Call[Any]] | None] = queue.SimpleQueue()

    def send(self, calls: Sequence[Call[Any]]) -> None:
        self._errands.put(calls)

    def stop(self) -> None:
        super().stop()
        self._errands.put(None)

    def run(self) -> None:
        while (calls := self._errands.get()) is not None:
            try:
                answers = self._link.ask(lambda _, calls=calls: self._line.exchange(calls))  # type: ignore[misc]
            except PASSING as error:
                self.tell(Unanswered(self._link.failed(error)))
            else:
                for refusal in answers:
                    if isinstance(refusal, RedisError):
                        self._link.failed(refusal)
                        break
                self.tell(Answered(answers))
        self._line.release()


class Line:
    """One connection of a client's, kept between exchanges: to take one out of redis-py's pool for each, and to put it
    back, costs a third of an exchange. For one thread.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._connection: Any = None

    def exchange(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The answer to each call, or the `ResponseError` that the server gave for it, in one round trip.

        Raises redis-py's errors when the connection is lost, and then it is unknown what the server has run.
        """
        self._connect()
        answers = self._send(calls)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            for script in {calls[at].script for at in unknown}:
                self._client.script_load(script.text)
            for at, answer in zip(unknown, self._send([calls[at] for at in unknown]), strict=True):
                answers[at] = answer
        return [
            answer if isinstance(answer, ResponseError) else call.read(answer)
            for call, answer in zip(calls, answers, strict=True)
        ]

    def release(self) -> None:
        if self._connection is not None:
            self._client.connection_pool.release(self._connection)
            self._connection = None

    def _connect(self) -> None:
        """Nothing is awaited, so a connection on which there is something to read has come to its end."""
        if self._connection is not None:
            try:
                is_over = self._connection.can_read()
            except (RedisError, OSError):
                is_over = True
            if is_over:
                self._hang_up()
        if self._connection is None:
            self._connection = self._client.connection_pool.get_connection()

    def _hang_up(self) -> None:
        self._connection.disconnect()
        self.release()

    def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        connection = self._connection
        try:
            connection.send_packed_command(connection.pack_commands([call.command for call in calls]))
            return [self._answer() for _ in calls]
        except BaseException:
            self._hang_up()  # and the next exchange begins on another
            raise

    def _answer(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error
