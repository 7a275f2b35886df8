"""A worker that the system starts and starts again after a crash: launchd on macOS, systemd on Linux.

At login for one user (a LaunchAgent, a user unit), or from the machine's start on, in a user's name (a LaunchDaemon, a
system unit). Two descriptions of one thing, and the few commands that hand them over. The files may hold a Redis
password, and are readable by their owner alone. What is said to launchd was never said to a real one: unverified until
a Mac has run it. Formats: launchd.plist(5), systemd.service(5), systemd.exec(5).
"""

from __future__ import annotations

import os
import plistlib
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from impetus_backends.cache import write_whole

from ..errors import ServiceError
from .supervisor import EXIT_CONFIGURATION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LABEL = "org.impetus-batch.worker"
UNIT = "impetus-worker.service"
STOP_S = 120
"""How long a worker may take to finish what its engine has begun."""
_AFTER_NETWORK = "Wants=network-online.target\nAfter=network-online.target\n"
_COMMAND_TIMEOUT_S = 60.0
_BOOTSTRAP_ATTEMPTS = 10


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


class _Launchd:
    """What LaunchAgent and LaunchDaemon have in common. Not yet run on a Mac."""

    def __init__(
        self, file: Path, log: Path, domain: str, run: Run, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.file = file
        self.logs = str(log)
        self._log = log
        self._domain = domain
        self._run = run
        self._sleep = sleep

    def _text(self, program: Program, home: Path, more: Mapping[str, object]) -> str:
        return plistlib.dumps(
            {
                "Label": LABEL,
                **more,
                "ProgramArguments": list(program.command),
                "EnvironmentVariables": dict(program.environment),
                "WorkingDirectory": str(home),
                "RunAtLoad": True,
                # launchd cannot tell a crash from a worker that will never start as told: both are tried again slowly.
                "KeepAlive": {"SuccessfulExit": False},
                "ThrottleInterval": 30,
                "ExitTimeOut": STOP_S,
                "ProcessType": "Interactive",  # without it launchd slows a background program's processor and disk
                "StandardOutPath": str(self._log),
                "StandardErrorPath": str(self._log),
                "Umask": 0o077,
            },
            sort_keys=False,
        ).decode()

    def _load(self) -> Answer:
        """Hands the file over; the answer to the last try."""
        self._run(["launchctl", "bootout", f"{self._domain}/{LABEL}"])
        self._run(["launchctl", "enable", f"{self._domain}/{LABEL}"])
        bootstrap = ["launchctl", "bootstrap", self._domain, str(self.file)]
        attempts, answer = 1, self._run(bootstrap)
        while answer.status != 0 and attempts < _BOOTSTRAP_ATTEMPTS:
            self._sleep(1.0)  # the one before is still on its way out
            attempts, answer = attempts + 1, self._run(bootstrap)
        return answer

    def uninstall(self) -> bool:
        self._run(["launchctl", "bootout", f"{self._domain}/{LABEL}"])
        return _removed(self.file)

    def state(self) -> ServiceState:
        answer = self._run(["launchctl", "print", f"{self._domain}/{LABEL}"])
        if answer.status != 0:
            return ServiceState(self.file.exists(), False, "not loaded")
        pairs = (line.strip().partition(" = ") for line in answer.text.splitlines())
        found = {name: value for name, equals, value in reversed(list(pairs)) if equals}
        words = ", ".join(f"{name} {found[name]}" for name in ("state", "pid", "last exit code") if name in found)
        return ServiceState(self.file.exists(), found.get("state") == "running", words)


class LaunchAgent(_Launchd):
    """launchd's, for one user, while that user is logged in at the screen."""

    def __init__(self, home: Path, uid: int, run: Run, sleep: Callable[[float], None] = time.sleep) -> None:
        file = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        super().__init__(file, _mac_log(home), f"gui/{uid}", run, sleep)
        self._home = home

    def text(self, program: Program) -> str:
        return self._text(program, self._home, {})

    def install(self, program: Program) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, self.text(program))
        answer = self._load()
        if answer.status != 0:
            raise ServiceError(
                f"launchd refused {self.file}: {answer.text}. Log in at the Mac's own screen and run `launchctl "
                f"bootstrap {self._domain} '{self.file}'` there; on a Mac that is reached by ssh only there is no such "
                "session to live in: install with --system (`sudo impetus-worker service install --system …`)"
            )


class LaunchDaemon(_Launchd):
    """launchd's, for the machine: from its start on, in a user's name, with nobody logged in."""

    def __init__(self, folder: Path, account: Account, run: Run, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(folder / f"{LABEL}.plist", _mac_log(account.home), "system", run, sleep)
        self._account = account

    def text(self, program: Program) -> str:
        return self._text(_in_name_of(self._account, program), self._account.home, {"UserName": self._account.name})

    def install(self, program: Program) -> None:
        # The log is the user's, who has to read it, and whom launchd lets write it.
        for missing in [each for each in (self._log.parent, *self._log.parent.parents) if not each.exists()][::-1]:
            missing.mkdir()
            os.chown(missing, self._account.uid, self._account.gid)
        write_whole(self.file, self.text(program))
        answer = self._load()
        if answer.status != 0:
            raise ServiceError(f"launchd refused {self.file}: {answer.text}. `log show --last 5m` may say why")


def _mac_log(home: Path) -> Path:
    return home / "Library" / "Logs" / "impetus" / "worker.log"


def _in_name_of(account: Account, program: Program) -> Program:
    """For a program that nobody logs in for, and that would find no home."""
    own = {"HOME": str(account.home), "USER": account.name, "LOGNAME": account.name}
    return Program(program.command, {**own, **program.environment})


class SystemdUnit:
    """systemd's, for one user; it lives as long as the user's session, or for ever with lingering."""

    def __init__(self, config: Path, run: Run) -> None:
        self.file = config / "systemd" / "user" / UNIT
        self.logs = f"journalctl --user -u {UNIT}"
        self._scope: tuple[str, ...] = ("--user",)
        self._run = run

    def text(self, program: Program) -> str:
        environment = "".join(
            f"Environment={_quoted(f'{name}={value}')}\n" for name, value in program.environment.items()
        )
        return self._text(program, f"{environment}WorkingDirectory=%h\n", wanted_by="default.target")

    def _text(self, program: Program, settings: str, *, wanted_by: str, after: str = "") -> str:
        # systemd puts variables into the arguments, and not into the name of the program.
        first, *rest = program.command
        command = " ".join([_quoted(first), *(_quoted(part).replace("$", "$$") for part in rest)])
        return (
            "[Unit]\n"
            "Description=Impetus worker\n"
            f"{after}"
            "\n"
            "[Service]\n"
            "Type=exec\n"
            f"ExecStart={command}\n"
            f"{settings}"
            "Restart=on-failure\n"
            "RestartSec=5\n"
            f"RestartPreventExitStatus={EXIT_CONFIGURATION}\n"
            # The supervisor tells its workers itself, and each finishes what it has begun.
            "KillMode=mixed\n"
            f"TimeoutStopSec={STOP_S}\n"
            "UMask=0077\n"
            "\n"
            "[Install]\n"
            f"WantedBy={wanted_by}\n"
        )

    def install(self, program: Program) -> None:
        text = self.text(program)
        self._systemctl("daemon-reload")  # before anything is written: is there a systemd at all?
        self._write(text, program)
        self._systemctl("daemon-reload")
        self._systemctl("enable", UNIT)
        self._systemctl("restart", UNIT)

    def _write(self, text: str, program: Program) -> None:
        write_whole(self.file, text)

    def uninstall(self) -> bool:
        if self.file.exists():
            self._systemctl("disable", "--now", UNIT)
        removed = _removed(self.file)
        if removed:
            self._systemctl("daemon-reload")
        return removed

    def state(self) -> ServiceState:
        answer = self._systemctl("show", UNIT, "--property=ActiveState,SubState,MainPID,NRestarts,ExecMainStatus")
        found = dict(line.split("=", 1) for line in answer.text.splitlines() if "=" in line)
        words = (
            f"{found.get('ActiveState', '?')} ({found.get('SubState', '?')}), pid {found.get('MainPID', '?')}, "
            f"restarts {found.get('NRestarts', '?')}, last exit status {found.get('ExecMainStatus', '?')}"
        )
        return ServiceState(self.file.exists(), found.get("ActiveState") == "active", words)

    def _systemctl(self, *arguments: str) -> Answer:
        command = ["systemctl", *self._scope, *arguments]
        answer = self._run(command)
        if answer.status != 0:
            raise ServiceError(
                f"{' '.join(command)} failed: {answer.text or f'exit status {answer.status}'}. "
                "Without systemd, or one for users, keep the worker running by what this system has, such as a "
                "container's restart policy, or by hand: nohup impetus-worker run >impetus.log 2>&1 &"
            )
        return answer


class SystemUnit(SystemdUnit):
    """systemd's, for the machine: from its start on, in a user's name."""

    def __init__(self, folder: Path, account: Account, run: Run) -> None:
        super().__init__(folder, run)
        self.file = folder / UNIT
        self.logs = f"sudo journalctl -u {UNIT}"
        self._scope = ()
        # Everybody may ask systemd for a unit's variables, and nobody may read this.
        self._variables = self.file.with_suffix(".env")
        self._account = account

    def text(self, program: Program) -> str:
        home, variables = (str(path).replace("%", "%%") for path in (self._account.home, self._variables))
        settings = f"User={self._account.name}\nEnvironmentFile={variables}\nWorkingDirectory={home}\n"
        return self._text(program, settings, wanted_by="multi-user.target", after=_AFTER_NETWORK)

    def variables(self, program: Program) -> str:
        """The content of the file of variables."""
        pairs = _in_name_of(self._account, program).environment.items()
        return "".join(f"{name}={_quoted_variable(value)}\n" for name, value in pairs)

    def _write(self, text: str, program: Program) -> None:
        write_whole(self._variables, self.variables(program))
        super()._write(text, program)

    def uninstall(self) -> bool:
        removed = super().uninstall()
        _removed(self._variables)
        return removed


def system_service_manager(
    system: str,
    uid: int,
    environment: Mapping[str, str],
    find: Callable[[str], Account],
    run: Run = run_command,
    root: Path = Path("/"),
) -> ServiceManager:
    """`service_manager` for the whole machine: needs root, and runs in the name of whoever became root by sudo.

    `find` looks an account up by its name, and raises `KeyError`.
    """
    if system != "darwin" and not system.startswith("linux"):
        raise ServiceError(
            f"no services are known for {system}: run `impetus-worker run` by what starts programs there"
        )
    name = environment.get("SUDO_USER", "")
    if uid != 0 or name in ("", "root"):
        raise ServiceError(
            "a service of the machine is installed by root, and runs in the name of the user who called sudo: as the "
            f"user who is to run it, say: sudo {sys.executable} -P -m impetus_worker service … --system"
        )
    try:
        account = find(name)
    except KeyError:
        raise ServiceError(
            f"there is no account {name!r} on this machine, in whose name the worker could run"
        ) from None
    if system == "darwin":
        return LaunchDaemon(root / "Library" / "LaunchDaemons", account, run)
    return SystemUnit(root / "etc" / "systemd" / "system", account, run)


def service_manager(
    system: str, home: Path, uid: int, environment: Mapping[str, str], run: Run = run_command
) -> ServiceManager:
    """What this system (`sys.platform`) keeps services with; raises `ServiceError` where Impetus knows of nothing."""
    if uid == 0 and system == "darwin":
        raise ServiceError(
            "a LaunchAgent belongs to a user: run this without sudo, as the user who is to run it, or with --system"
        )
    if system == "darwin":
        return LaunchAgent(home, uid, run)
    if system.startswith("linux"):
        config = environment.get("XDG_CONFIG_HOME")
        return SystemdUnit(home / ".config" if not config else home / config, run)
    raise ServiceError(f"no services are known for {system}: run `impetus-worker run` by what starts programs there")


def _quoted_variable(text: str) -> str:
    """A value in a file of variables, where there are no specifiers."""
    for special in '\\"$`':
        text = text.replace(special, f"\\{special}")
    return f'"{text}"'


def _quoted(text: str) -> str:
    """One word of a unit's line. `%` begins systemd's own specifiers."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _removed(file: Path) -> bool:
    existed = file.exists()
    file.unlink(missing_ok=True)
    return existed
