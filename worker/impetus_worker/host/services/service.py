"""What a service is: a program, an account, a state, and a manager that keeps it running.

At login for one user, or from the machine's start on, in a user's name: `launchd` and `systemd` each know how, and
`service_manager` which of them a system has.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ...errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

STOP_S = 120
"""How long a worker may take to finish what its engine has begun."""
_COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said: its exit status, and both its outputs."""

    status: int
    text: str


Run: TypeAlias = "Callable[[Sequence[str]], Answer]"
"""How a command is run: `run_command`, or a test's own."""


def run_command(command: Sequence[str]) -> Answer:
    """Runs a command to its end; one that does not exist, or hangs, has failed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        return Answer(127, f"{command[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Answer(124, f"{command[0]}: no answer within {_COMMAND_TIMEOUT_S:.0f} s")
    return Answer(done.returncode, done.stdout.strip())


@dataclass(frozen=True, slots=True)
class Program:
    """What the service runs."""

    command: tuple[str, ...]
    """The interpreter by its absolute path, and its arguments."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in (*self.command, *self.environment, *self.environment.values()):
            if any(ord(character) < 32 for character in text):
                raise ServiceError(f"{text!r} holds a control character, which no service file can carry")


@dataclass(frozen=True, slots=True)
class ServiceState:
    installed: bool
    running: bool
    words: str
    """What the system says of it, in one line."""


class ServiceManager(Protocol):
    """What a system offers. Raises `ServiceError` with what to do instead."""

    @property
    def file(self) -> Path: ...
    @property
    def logs(self) -> str:
        """Where to read what the worker says, as words for a user."""
        ...

    def text(self, program: Program) -> str:
        """The file's content."""
        ...

    def install(self, program: Program) -> None:
        """Writes the file and starts the service, in place of one that runs."""

    def uninstall(self) -> bool:
        """Stops the service and removes the file; whether there was one."""
        ...

    def state(self) -> ServiceState: ...


@dataclass(frozen=True, slots=True)
class Account:
    """The user in whose name a service of the machine runs."""

    name: str
    home: Path
    uid: int
    gid: int


def in_name_of(account: Account, program: Program) -> Program:
    """For a program that nobody logs in for, and that would find no home."""
    own = {"HOME": str(account.home), "USER": account.name, "LOGNAME": account.name}
    return Program(program.command, {**own, **program.environment})


def removed(file: Path) -> bool:
    existed = file.exists()
    file.unlink(missing_ok=True)
    return existed
