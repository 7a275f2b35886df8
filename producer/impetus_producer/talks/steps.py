"""The steps of a talk with a server, which say what is asked, and not how its answer is waited for.

A talk is a generator: it yields a step and is sent what came of it, or has thrown into it what went wrong. `Line`
(`line.py`) holds talks in a thread, `AsyncLine` (`asynchronous/line.py`) in a task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from ..contract import ABANDONED_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

T = TypeVar("T")
RENEW_S = 5.0
LOOK_S = 1.0
"""So often is it looked whether there still is something to wait for."""


def _as_it_is(answer: Any) -> Any:
    return answer


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """Means the same when it is asked twice.

    `ask` puts it to a client, whose answer is a promise where the client is one for asyncio. `read` makes of the answer
    what is wanted, and may raise errors of redis-py that were among it. `deadline` by the monotonic clock.
    """

    ask: Callable[[Any], Any]
    read: Callable[[Any], T] = _as_it_is
    deadline: float | None = None
    once: bool = False
    """Whether a server that does not answer is not waited for."""

    def put_to(self, client: Redis) -> T:
        return self.read(self.ask(client))


@dataclass(slots=True)
class Vigil:
    """That somebody waits for a job, which is said by a key that expires, and said anew every `RENEW_S`.

    Not only prolonged: whoever comes back after the time ran out may still be in time, as the worker looks only now and
    then.
    """

    key: str
    renew_at: float = 0.0

    def due(self) -> bool:
        """Whether to say it now; who asks says it."""
        if time.monotonic() < self.renew_at:
            return False
        self.renew_at = time.monotonic() + RENEW_S
        return True

    def say(self, client: Any) -> Any:
        return client.set(self.key, 1, ex=ABANDONED_AFTER_S)


@dataclass(frozen=True, slots=True)
class Look:
    """What there is of a job. `status` is RQ's word, None if there is no such job."""

    status: str | None
    has_result: bool

    @property
    def over(self) -> bool:
        """Whether no result will come any more."""
        if self.status in ("finished", "failed"):
            return not self.has_result
        return self.status in (None, "canceled", "stopped")


@dataclass(slots=True)
class Listen:
    """Waits for what is new in streams about a job, as long as there is something to wait for and until `deadline`.

    `seen`: by stream the entry after which to read, which moves on. Answered by `Heard`.
    """

    job_id: str
    seen: dict[str, str]
    deadline: float | None = None
    vigil: Vigil | None = None
    look_at: float = field(default_factory=lambda: time.monotonic() + LOOK_S)
    """When to look whether there still is something to wait for."""

    @property
    def left_s(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()


Entries: TypeAlias = "Mapping[str, list[dict[bytes, bytes]]]"


@dataclass(frozen=True, slots=True)
class Heard:
    """New entries by stream; `look` where it was looked."""

    entries: Entries
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Piece:
    """Something for whoever holds the talk."""

    value: Any


@dataclass(frozen=True, slots=True)
class End(Generic[T]):
    """What came of the talk. Nobody yields it."""

    value: T


Step: TypeAlias = Question[Any] | Listen | Pause | Piece
Talk: TypeAlias = Generator[Step, Any, T]


def advanced(talk: Talk[T], answer: Any = None, error: Exception | None = None) -> Step | End[T]:
    """The talk's first step, or the one after that which had this answer, or this error."""
    try:
        return talk.send(answer) if error is None else talk.throw(error)
    except StopIteration as end:
        return End(end.value)


def past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def deadline_in(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def directly(client: Redis, talk: Talk[T]) -> T:
    """Holds a talk of questions alone, and waits for nobody."""
    step = advanced(talk)
    while not isinstance(step, End):
        assert isinstance(step, Question)
        step = advanced(talk, step.put_to(client))
    return step.value
