"""A thread's line to a server: holds talks (`talks/steps.py`), and waits where they wait."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .talks.results import as_text, look_at
from .talks.steps import LOOK_S, End, Heard, Listen, Pause, Piece, Question, advanced, past

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from redis import Redis

    from .servers.patience import Patience
    from .talks.steps import Entries, Step, Talk

T = TypeVar("T")


class Line:
    """`while_away` is called at each try while the server is away, and about once a second of waiting for news; what it
    raises ends the talk.
    """

    def __init__(self, connection: Redis, patience: Patience, while_away: Callable[[], None] | None = None) -> None:
        self._connection = connection
        self._patience = patience
        self._while_away = while_away

    def hold(self, talk: Talk[T]) -> T:
        """What comes of a talk that has no pieces."""
        pieces = self.pieces(talk)
        try:
            while True:
                next(pieces)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def pieces(self, talk: Talk[T]) -> Generator[Any, None, T]:
        """The pieces of a talk, as they come."""
        step = advanced(talk)
        while not isinstance(step, End):
            if isinstance(step, Piece):
                yield step.value
            try:
                answer = self._take(step)
            except Exception as error:  # noqa: BLE001 - what it means is the talk's to know
                step = advanced(talk, error=error)
            else:
                step = advanced(talk, answer)
        return step.value

    def _take(self, step: Step) -> Any:
        match step:
            case Question():
                return self.ask(step)
            case Listen():
                return self._listen(step)
            case Pause():
                time.sleep(step.seconds)
        return None

    def ask(self, question: Question[T]) -> T:
        return self._ask(partial(question.put_to, self._connection), question.deadline, question.once)

    def _ask(self, question: Callable[[], T], deadline: float | None, once: bool = False) -> T:
        return self._patience.ask(self._connection, question, deadline=deadline, while_away=self._while_away, once=once)

    def _listen(self, listen: Listen) -> Heard:
        while True:
            entries = self._ask(partial(self._read, listen), listen.deadline)
            look = None
            if not entries or time.monotonic() >= listen.look_at:
                listen.look_at = time.monotonic() + LOOK_S
                look = self.ask(look_at(listen.job_id, listen.deadline))
                if self._while_away is not None:
                    self._while_away()
            if entries or (look is not None and look.over) or past(listen.deadline):
                return Heard(entries, look)

    def _read(self, listen: Listen) -> Entries:
        """New entries, moving on what was seen; waits for `LOOK_S` at most."""
        # Redis takes a block of 0 as "for ever".
        block_ms = max(1, int(1000 * min(listen.left_s, LOOK_S)))
        if listen.vigil is not None and listen.vigil.due():
            listen.vigil.say(self._connection)
        seen: Any = listen.seen
        streams: Any = self._connection.xread(seen, block=block_ms)
        read: dict[str, list[dict[bytes, bytes]]] = {}
        for key, entries in dict(streams or {}).items():
            listen.seen[as_text(key)] = entries[-1][0]
            read[as_text(key)] = [fields for _, fields in entries]
        return read
