"""launchd's services: an agent for one user, at login, and a daemon for the machine.

The files may hold a Redis password, and are readable by their owner alone. What is said here to launchd was never said
to a real one: unverified until a Mac has run it. Format: launchd.plist(5).
"""

from __future__ import annotations

import os
import plistlib
import time
from typing import TYPE_CHECKING

from impetus_backends.cache import write_whole

from ...errors import ServiceError
from .service import STOP_S, ServiceState, in_name_of, removed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .service import Account, Answer, Program, Run

LABEL = "org.impetus-batch.worker"
_BOOTSTRAP_ATTEMPTS = 10


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
        return removed(self.file)

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
        return self._text(in_name_of(self._account, program), self._account.home, {"UserName": self._account.name})

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
