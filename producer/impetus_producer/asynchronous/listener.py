"""One connection that listens for all that tasks wait for.

It reads the streams of all of them at once, says for those who want it said that they wait, and looks now and then
whether there still is something to wait for. Whoever comes while it listens wakes it, by a stream of its own; where a
server's rules deny that, it listens in short turns.
"""

from __future__ import annotations

import asyncio
import copy
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar
from uuid import uuid4

from ..contract import WAKE_KEY
from ..errors import ImpetusError, ServerConfigurationError, ServerDataError, ServerError
from ..servers.answers import known_answers
from ..servers.troubles import server_errors
from ..talks.results import as_text, ask_for_look, read_look
from ..talks.steps import LOOK_S, Heard, Look, Question, past

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..talks.steps import Listen

T = TypeVar("T")
News: TypeAlias = "Mapping[str, Sequence[tuple[Any, dict[bytes, bytes]]]]"
"""Entries by stream."""

_LOOKS_PER_S = 200
"""So many jobs are looked at in a second at most, all in one round trip."""
_LATE_S = 1.0
"""So long after its deadline who waits is let go even if the server is silent."""
_SHORT_TURN_S = 0.05
_WAKE_TTL_S = 60


class Ask(Protocol):
    async def __call__(self, question: Question[T]) -> T: ...


@dataclass(slots=True, eq=False)
class _Waiting:
    listen: Listen
    heard: asyncio.Future[Heard]

    def end(self, heard: Heard | Exception) -> None:
        if self.heard.done():
            return
        if isinstance(heard, Heard):
            self.heard.set_result(heard)
        else:
            self.heard.set_exception(heard)


class Listener:
    """`ask` puts a question with patience, on a connection that nobody else waits for."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: set[_Waiting] = set()
        self._task: asyncio.Task[None] | None = None
        self._reading = False
        """Whether it reads for those who were there before, so that who comes has to wake it."""
        self._rung = False
        """Whether somebody did so."""
        self._ringing: set[asyncio.Task[None]] = set()
        self._wake_key = f"{WAKE_KEY}{uuid4().hex}"
        self._woken = "0-0"
        """The last entry read there."""
        self._may_wake: bool | None = None

    async def hear(self, listen: Listen) -> Heard:
        """What is new, or what there is no more of, or nothing at its deadline. Who waits may be cancelled."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(listen, loop.create_future())
        self._waiting.add(waiting)
        late = None
        if listen.deadline is not None:
            late = loop.call_later(max(0.0, listen.left_s) + _LATE_S, waiting.end, Heard({}))
        try:
            self._rouse()
            return await waiting.heard
        finally:
            self._waiting.discard(waiting)
            if late is not None:
                late.cancel()

    async def close(self) -> None:
        for waiting in self._waiting:
            waiting.end(ImpetusError("the producer was closed while somebody waited"))
        tasks = [*self._ringing, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _rouse(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="impetus-listener")
        elif self._reading and self._may_wake and not self._rung:
            self._rung = True
            ringing = asyncio.create_task(self._ring())
            self._ringing.add(ringing)
            ringing.add_done_callback(self._ringing.discard)

    async def _ring(self) -> None:
        # Where it fails the listener looks up by itself within a second.
        with suppress(ServerError):
            await self._ask(Question(lambda client: self._wake(client.pipeline(transaction=False)).execute()))

    def _wake(self, pipeline: Any) -> Any:
        pipeline.xadd(self._wake_key, {"come": 1}, maxlen=1, approximate=False)
        pipeline.expire(self._wake_key, _WAKE_TTL_S)
        return pipeline

    async def _run(self) -> None:
        try:
            if self._may_wake is None:
                self._may_wake = await self._try_to_wake()
            while self._waiting:
                self._reading, self._rung = True, False
                await self._turn([each for each in self._waiting if not each.heard.done()])
        except Exception as error:  # noqa: BLE001 - who waits is told, whatever it was
            for waiting in self._waiting:
                waiting.end(_copy(error))

    async def _turn(self, waiting: Sequence[_Waiting]) -> None:
        """One reading for all, and a look at those whose turn it is."""
        await self._keep_vigils(waiting)
        try:
            news = await self._read(waiting)
        except ServerDataError as error:
            await self._end_the_unreadable(waiting, error)
            return
        finally:
            self._reading = False
        for each in waiting:
            heard = _new(each.listen, news)
            if heard or past(each.listen.deadline):
                each.end(Heard(heard))
        await self._look([each for each in waiting if not each.heard.done()])
        # So that who goes on waiting at once is there at the next turn.
        await asyncio.sleep(0)

    async def _keep_vigils(self, waiting: Iterable[_Waiting]) -> None:
        due = [each.listen.vigil for each in waiting if each.listen.vigil is not None and each.listen.vigil.due()]
        if not due:
            return

        def ask(client: Any) -> Any:
            pipeline = client.pipeline(transaction=False)
            for vigil in due:
                vigil.say(pipeline)
            return pipeline.execute()

        await self._ask(Question(ask))

    async def _read(self, waiting: Sequence[_Waiting]) -> News:
        """New entries by stream; waits for `LOOK_S` at most."""
        seen = _earliest(each.listen.seen for each in waiting)

        def ask(client: Any) -> Any:
            longest_s = LOOK_S if self._may_wake else _SHORT_TURN_S
            left_s = min([longest_s, *(each.listen.left_s for each in waiting)])
            streams = {**seen, self._wake_key: self._woken} if self._may_wake else seen
            return client.xread(streams, block=max(1, int(1000 * left_s)))

        answer: Any = await self._ask(Question(ask))
        news = {as_text(key): entries for key, entries in dict(answer or {}).items()}
        if rung := news.pop(self._wake_key, None):
            self._woken = as_text(rung[-1][0])
        return news

    async def _look(self, waiting: Sequence[_Waiting]) -> None:
        now = time.monotonic()
        due = [each for each in waiting if now >= each.listen.look_at]
        if not due:
            return
        for each in due:
            each.listen.look_at = now + max(LOOK_S, len(self._waiting) / _LOOKS_PER_S)

        def ask(client: Any) -> Any:
            pipeline = client.pipeline(transaction=False)
            for each in due:
                ask_for_look(pipeline, each.listen.job_id)
            return pipeline.execute(raise_on_error=False)

        looks = await self._ask(Question(ask, _read_looks))
        for each, look in zip(due, looks, strict=True):
            if not isinstance(look, Look):
                each.end(look)
            elif look.over:
                each.end(Heard({}, look))

    async def _end_the_unreadable(self, waiting: Sequence[_Waiting], error: ServerDataError) -> None:
        """Ends those in whose streams' place something else lies, for which the others cannot be read together."""
        keys = list({key for each in waiting for key in each.listen.seen})

        def ask(client: Any) -> Any:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.xread({key: "$"})
            return pipeline.execute(raise_on_error=False)

        answers = await self._ask(Question(ask, _refused))
        wrong = set(compress(keys, answers))
        if not wrong:
            raise error
        for each in waiting:
            if wrong & each.listen.seen.keys():
                each.end(_copy(error))

    async def _try_to_wake(self) -> bool:
        """Whether the server's rules let us."""

        def ask(client: Any) -> Any:
            pipeline = self._wake(client.pipeline(transaction=False))
            pipeline.xread({self._wake_key: "0-0"})
            return pipeline.execute()

        try:
            await self._ask(Question(ask))
        except ServerConfigurationError:
            return False
        return True


def _earliest(all_seen: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """By stream the entry after which none of them has read."""
    earliest: dict[str, Any] = {}
    for seen in all_seen:
        for key, entry_id in seen.items():
            if key not in earliest or _place(entry_id) < _place(earliest[key]):
                earliest[key] = entry_id
    return earliest


def _place(entry_id: bytes | str) -> tuple[int, ...]:
    return tuple(map(int, as_text(entry_id).split("-")))


def _new(listen: Listen, news: News) -> dict[str, list[dict[bytes, bytes]]]:
    """What of this is new to one who waits, moving on what was seen."""
    new = {}
    for key, seen in listen.seen.items():
        if entries := [entry for entry in news.get(key, ()) if _place(entry[0]) > _place(seen)]:
            listen.seen[key] = as_text(entries[-1][0])
            new[key] = [fields for _, fields in entries]
    return new


def _read_looks(answers: Sequence[Any]) -> list[Look | Exception]:
    """Each job's look, or what is wrong with what lies there."""
    known_answers(answers)
    return [_read_look(*pair) for pair in zip(answers[::2], answers[1::2], strict=True)]


def _read_look(status: Any, has_result: Any) -> Look | Exception:
    for answer in (status, has_result):
        if isinstance(answer, Exception):
            try:
                with server_errors():
                    raise answer
            except ServerError as error:
                return error
    return read_look(status, has_result)


def _refused(answers: Sequence[Any]) -> list[bool]:
    """Which of the answers are errors about what lies there; raises any other error."""
    known_answers(answers)
    return [isinstance(answer, Exception) for answer in answers]


def _copy(error: Exception) -> Exception:
    """For each who waits one of their own, as each adds to it where it was raised."""
    own = copy.copy(error)
    own.__cause__ = error
    return own
