"""Takes the loop's calls to the server and brings the answers, so that the loop goes on meanwhile.

At most one exchange at a time: a few calls sent together, run by the server in that order, and answered together.
Knows nothing of what the scripts do.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..companion import Companion
from ..inbox import Answered, Unanswered
from ..link import PASSING, Link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from .scripts import Call


class Courier(Companion):
    """Tells an `Answered` or an `Unanswered` for everything that it is sent with."""

    def __init__(self, link: Link, tell: Callable[[object], None]) -> None:
        super().__init__("courier", tell)
        self._link = link
        self._errands: queue.SimpleQueue[Sequence[Call[Any]] | None] = queue.SimpleQueue()

    def send(self, calls: Sequence[Call[Any]]) -> None:
        self._errands.put(calls)

    def stop(self) -> None:
        super().stop()
        self._errands.put(None)

    def run(self) -> None:
        while (calls := self._errands.get()) is not None:
            try:
                answers = self._link.ask(lambda connection, calls=calls: exchange(connection, calls))  # type: ignore[misc]
            except PASSING as error:
                self.tell(Unanswered(self._link.failed(error)))
            else:
                for refusal in answers:
                    if isinstance(refusal, RedisError):
                        self._link.failed(refusal)
                        break
                self.tell(Answered(answers))


def exchange(connection: Redis, calls: Sequence[Call[Any]]) -> list[Any]:
    """The answer to each call, or the `ResponseError` that the server gave for it, in one round trip.

    Raises redis-py's errors when the connection is lost, and then it is unknown what the server has run.
    """
    answers = _send(connection, calls)
    unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if unknown:
        for script in {calls[at].script for at in unknown}:
            connection.script_load(script.text)
        for at, answer in zip(unknown, _send(connection, [calls[at] for at in unknown]), strict=True):
            answers[at] = answer
    return [
        answer if isinstance(answer, ResponseError) else call.read(answer)
        for call, answer in zip(calls, answers, strict=True)
    ]


def _send(connection: Redis, calls: Sequence[Call[Any]]) -> list[Any]:
    with connection.pipeline(transaction=False) as pipeline:
        add: Any = pipeline.execute_command
        for call in calls:
            add(*call.command)
        return pipeline.execute(raise_on_error=False)
