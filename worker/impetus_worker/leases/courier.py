"""Takes the loop's calls to the server and brings the answers, so that the loop goes on meanwhile.

An exchange is a few calls sent together, run by the server in that order, and answered together. The next one goes out
while the last one is yet to be answered, so that the server has it at once. Knows nothing of what the scripts do.
"""

from __future__ import annotations

import queue
import select
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..companions.companion import Companion
from ..companions.link import PASSING, Link
from ..inbox import Answered, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from .scripts import Call


class Courier(Companion):
    """Tells an `Answered` or an `Unanswered` for everything that it is sent with, in that order."""

    def __init__(self, link: Link, tell: Callable[[object], None]) -> None:
        super().__init__("courier", tell)
        self._link = link
        self._line = Line(link.connection)
        self._losses = 0
        """Of the worker's lines, when this one was made."""
        self._errands: queue.SimpleQueue[Sequence[Call[Any]] | None] = queue.SimpleQueue()
        self._bell: Bell | None = None
        """While it waits for an answer: what wakes it for an errand."""

    def send(self, calls: Sequence[Call[Any]]) -> None:
        self._put(calls)

    def stop(self) -> None:
        super().stop()
        self._put(None)

    def _put(self, errand: Sequence[Call[Any]] | None) -> None:
        self._errands.put(errand)
        if (bell := self._bell) is not None:
            bell.ring()

    def run(self) -> None:
        wanted = True
        with Bell() as bell:
            while wanted or self._line.awaited:
                try:
                    if self._line.awaited and self._is_answered_first(bell):
                        self._bring()
                    elif (calls := self._errands.get()) is not None:
                        self._doubt()
                        self._line.send(calls)
                    else:
                        wanted = False
                except PASSING as error:
                    self._lost(error)
        self._line.release()

    def _doubt(self) -> None:
        """What ended another thread's line may have ended this one, on which nobody waits, without a word."""
        if not self._line.awaited and self._losses != (losses := self._link.losses):
            self._losses = losses
            self._line.hang_up()

    def _is_answered_first(self, bell: Bell) -> bool:
        """Waits for an answer or an errand, which goes first, because the server waits for it."""
        self._bell = bell  # before it looks: for what comes later it is rung
        try:
            while self._errands.empty():
                if self._line.wait(bell):
                    return True
                bell.hush()
            return False
        finally:
            self._bell = None

    def _bring(self) -> None:
        answered = [self._line.receive()]
        self._link.worked()
        refusal = next((answer for answer in answered[0] if isinstance(answer, RedisError)), None)
        if refusal is not None:
            with suppress(*PASSING):  # the connection is given up: what is behind is heard before
                while self._line.awaited:
                    answered.append(self._line.receive())
            self._link.failed(refusal)
        for answers in answered:
            self.tell(Answered(answers))
        if refusal is not None and self._line.awaited:
            self._lost(refusal)

    def _lost(self, error: Exception) -> None:
        """It is unknown what the server has run of all that was on its way."""
        lost = self._line.hang_up()
        retry_in_s = self._link.failed(error)
        for _ in range(lost):
            self.tell(Unanswered(retry_in_s))


class Bell:
    """Wakes a thread that waits for it beside other things that can be read."""

    def __init__(self) -> None:
        self.heard, self._rung = socket.socketpair()
        for end in (self.heard, self._rung):
            end.setblocking(False)

    def __enter__(self) -> Bell:
        return self

    def __exit__(self, *_: object) -> None:
        self.heard.close()
        self._rung.close()

    def ring(self) -> None:
        with suppress(OSError):  # nobody waits any more, or it rings already
            self._rung.send(b"\0")

    def hush(self) -> None:
        with suppress(BlockingIOError):
            self.heard.recv(4096)


@dataclass(slots=True)
class _Sent:
    calls: Sequence[Call[Any]]
    answers: list[Any] | None = None
    """As far as they were read before their turn."""


class Line:
    """One connection of a client's, kept between exchanges: to take one out of redis-py's pool for each, and to put it
    back, costs a third of an exchange. For one thread.

    All methods but `hang_up` raise redis-py's errors when the connection is lost, and then it is unknown what the
    server has run of what was not received.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._connection: Any = None
        self._sent: deque[_Sent] = deque()

    @property
    def awaited(self) -> int:
        """How many exchanges await their answers."""
        return len(self._sent)

    def send(self, calls: Sequence[Call[Any]]) -> None:
        self._sent.append(_Sent(calls))
        if len(self._sent) == 1:
            self._connect()
        self._write(calls)

    def wait(self, bell: Bell) -> bool:
        """Waits for an answer, as long as the client is patient, or until the bell rings; whether it is the answer."""
        if self._sent[0].answers is not None or self._connection.can_read():
            return True
        poll = select.poll()
        poll.register(self._connection._sock, select.POLLIN)
        poll.register(bell.heard, select.POLLIN)
        patience_s = self._connection.socket_timeout
        ready = poll.poll(None if patience_s is None else 1000 * patience_s)
        if not ready:
            raise RedisTimeoutError("no answer came in time")
        return any(fd != bell.heard.fileno() for fd, _ in ready)

    def receive(self) -> list[Any]:
        """The answer to each call of what was sent first, or the `ResponseError` that the server gave for it."""
        first = self._sent[0]
        if first.answers is None:
            first.answers = self._read(first.calls)
            if any(isinstance(answer, NoScriptError) for answer in first.answers):
                self._run_again()
        self._sent.popleft()
        return [
            answer if isinstance(answer, ResponseError) else call.read(answer)
            for call, answer in zip(first.calls, first.answers or (), strict=True)
        ]

    def _run_again(self) -> None:
        """The server forgot scripts: it is told them, and gets again what it did not run."""
        unknown: list[tuple[_Sent, int]] = []
        for sent in self._sent:
            if sent.answers is None:
                sent.answers = self._read(sent.calls)
            unknown += [(sent, at) for at, answer in enumerate(sent.answers) if isinstance(answer, NoScriptError)]
        calls = [sent.calls[at] for sent, at in unknown]
        for script in {call.script for call in calls}:
            self._client.script_load(script.text)
        self._write(calls)
        for (sent, at), answer in zip(unknown, self._read(calls), strict=True):
            assert sent.answers is not None
            sent.answers[at] = answer

    def hang_up(self) -> int:
        """The next exchange begins on another connection. Returns how many will have no answer."""
        lost = len(self._sent)
        self._sent.clear()
        self._give_up()
        return lost

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
                self._give_up()
        if self._connection is None:
            self._connection = self._client.connection_pool.get_connection()

    def _give_up(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
        self.release()

    def _write(self, calls: Sequence[Call[Any]]) -> None:
        self._connection.send_packed_command(self._connection.pack_commands([call.command for call in calls]))

    def _read(self, calls: Sequence[Call[Any]]) -> list[Any]:
        return [self._answer() for _ in calls]

    def _answer(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error
