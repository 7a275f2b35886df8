"""The scripts in `lua/`, and a run of one of them as a thing to send. Knows nothing of what they do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Script:
    """A script by its text, with the prelude that all share before it."""

    text: str
    sha: str

    @classmethod
    def named(cls, name: str) -> Script:
        return _script(name)


@cache
def _script(name: str) -> Script:
    folder = resources.files(__package__) / "lua"
    text = (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One run of a script: what to send, and what its answer means."""

    script: Script
    arguments: Sequence[Any]
    read: Callable[[Any], T]
    keys: Sequence[str] = field(default=())

    @property
    def command(self) -> tuple[Any, ...]:
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)

    def run(self, connection: Redis) -> T:
        """Sends it and waits. A server that does not know the script is told it."""
        from redis.exceptions import NoScriptError

        ask: Any = connection.execute_command
        try:
            return self.read(ask(*self.command))
        except NoScriptError:
            connection.script_load(self.script.text)
            return self.read(ask(*self.command))


def nothing(answer: Any) -> None:
    """For scripts whose answer means nothing."""


def ids(answer: Any) -> list[str]:
    """For scripts that answer with ids."""
    return [job_id.decode(errors="replace") for job_id in answer]
