"""A system that takes services and remembers what it was told."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from impetus_worker.host.services.launchd import LaunchAgent
from impetus_worker.host.services.service import Account, Answer, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


PYTHON = Path("/opt/impetus/bin/python")
ODD = 'a "quoted" \\ 50 % of $HOME, it\'s <&>'
PROGRAM = Program(
    (str(PYTHON), "-m", "impetus_worker", "run", "--embedding-model", ODD),
    {"IMPETUS_REDIS_URL": "redis://:s3cret@queue.example/0", "IMPETUS_ODD": ODD},
)


class System:
    """Plays launchctl and systemctl: notes what it is told, and answers as told."""

    def __init__(self, answers: Callable[[str], Answer | None] = lambda told: None) -> None:
        self.told: list[str] = []
        self._answers = answers

    def __call__(self, command: Sequence[str]) -> Answer:
        self.told.append(shlex.join(command))
        return self._answers(self.told[-1]) or Answer(0, "")


def agent(home: Path, system: System) -> LaunchAgent:
    return LaunchAgent(home, 501, system, sleep=lambda seconds: None)


def read_unit(text: str) -> dict[str, list[str]]:
    """A unit's settings; systemd allows names twice, which configparser does not."""
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line:
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def unescaped(text: str) -> list[str]:
    """The words of a line as systemd reads them."""
    return [word.replace("%%", "%") for word in shlex.split(text, posix=True)]


# -- the machine's own services --------------------------------------------------------------------------------------


def account(home: Path) -> Account:
    return Account("ada", home, os.getuid(), os.getgid())
