"""A task's line to a server: holds talks (`talks/steps.py`), and waits where they wait."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import NoServerError, ResultTimeoutError, ServerError
from ..servers.connections import ANSWER_TIMEOUT_S
from ..servers.patience import Tries
from ..servers.troubles import (
    better_told,
    check_greeting,
    greeting_refused,
    is_of_the_line,
    read_greeting,
    server_errors,
)
from ..talks.steps import End, Listen, Pause, Piece, Question, advanced
from .listener import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from ..servers.patience import Patience
    from ..talks.steps import Step, Talk

T = TypeVar("T")
_MOST_QUESTIONS = 32
"""So many are asked at once, on a connection each, however many tasks ask; beside them one listens for all."""
_LAST_TRY_S = 1.0
"""So long may a question take at least, however near its deadline is."""


class AsyncLine:
    """Shared by all tasks of one event loop."""

    def __init__(self, client: Redis, patience: Patience) -> None:
        self._client = client
        self._patience = patience
        self._listener = Listener(self._ask_beside)
        self._room = asyncio.Semaphore(_MOST_QUESTIONS)
        self._checked = False

    async def close(self) -> None:
        """Ends whoever waits for news, and closes all connections."""
        await self._listener.close()
        await self._client.aclose()

    async def check(self) -> None:
        """Raises what is wrong with the server, as `check_server` does; waits for nobody."""
        from redis.exceptions import ResponseError

        ask: Any = self._client.execute_command
        try:
            with server_errors():
                try:
                    async with asyncio.timeout(ANSWER_TIMEOUT_S):
                        said = read_greeting(await ask("HELLO"))
                except ResponseError as error:
                    said = greeting_refused(error)
        except NoServerError as error:
            raise await asyncio.to_thread(better_told, error, self._client) from error
        check_greeting(said)
        self._checked = True

    async def hold(self, talk: Talk[T]) -> T:
        """What comes of a talk that has no pieces."""
        step = advanced(talk)
        while not isinstance(step, End):
            step = await self._after(talk, step)
        return step.value

    async def pieces(self, talk: Talk[None]) -> AsyncIterator[Any]:
        """The pieces of a talk, as they come."""
        step = advanced(talk)
        while not isinstance(step, End):
            if isinstance(step, Piece):
                yield step.value
            step = await self._after(talk, step)

    async def _after(self, talk: Talk[T], step: Step) -> Step | End[T]:
        try:
            answer = await self._take(step)
        except Exception as error:  # noqa: BLE001 - what it means is the talk's to know
            return advanced(talk, error=error)
        return advanced(talk, answer)

    async def _take(self, step: Step) -> Any:
        match step:
            case Question():
                return await self.ask(step)
            case Listen():
                return await self._listener.hear(step)
            case Pause():
                await asyncio.sleep(step.seconds)
        return None

    async def ask(self, question: Question[T]) -> T:
        """The answer, as `Patience.ask` has it; not later than the question's deadline, or a second where less is left.

        A network that is silent is no excuse.
        """
        left_s = None if question.deadline is None else max(question.deadline - time.monotonic(), _LAST_TRY_S)
        try:
            async with asyncio.timeout(left_s):
                return await self._ask(question, self._room)
        except TimeoutError as error:
            if isinstance(error, ResultTimeoutError):
                raise
            raise ResultTimeoutError(
                "the time given is over, and the Redis server does not answer: is it running?"
            ) from None

    async def _ask_beside(self, question: Question[T]) -> T:
        """As `ask`, on a connection that nobody else waits for."""
        return await self._ask(question, asyncio.Semaphore())

    async def _ask(self, question: Question[T], room: asyncio.Semaphore) -> T:
        tries = Tries(self._patience, question.deadline, once=question.once)
        while True:
            try:
                async with room:
                    if not self._checked:
                        await self.check()
                    with server_errors():
                        async with asyncio.timeout(ANSWER_TIMEOUT_S):
                            answer = question.read(await question.ask(self._client))
            except ServerError as error:
                pause_s = tries.pause_after(error)
                if is_of_the_line(error):
                    # As in `server_errors`, of the lines that nobody uses.
                    with suppress(OSError):
                        await self._client.connection_pool.disconnect(inuse_connections=False)
                await asyncio.sleep(pause_s)
            else:
                self._patience.came_back()
                return answer
