"""`impetus-worker run` with a server of its own, and the processes below it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis import Redis

from impetus_producer.servers.discovery import ServerNote
from tests.patience import eventually

from ..faults.breakable import children

if TYPE_CHECKING:
    from pathlib import Path

SIMULATED = ("--roles", "embedding", "--embedding-backend", "simulated")


class Run:
    """`impetus-worker run` with a server of its own, whose state lies in `state`."""

    def __init__(self, state: Path, *options: str, cwd: Path | None = None, **more: Any) -> None:
        self.state = state
        state.parent.mkdir(parents=True, exist_ok=True)
        self._log = state.parent / "run.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IMPETUS_")}
        more.setdefault("stdin", subprocess.DEVNULL)
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "impetus_worker", "run", *SIMULATED, *options],
                **({"stdout": log, "stderr": log} | more),
                # As services run: in no language.
                env={**environment, "LC_ALL": "C", "IMPETUS_STATE_DIR": str(state)},
                cwd=cwd,
            )
        self.tree: dict[int, str] = {}

    @property
    def log(self) -> str:
        return self._log.read_text()

    def serves(self) -> str:
        """The URL of its server, once a worker serves there."""
        note = eventually(lambda: (self._alive() and ServerNote.read(self.state)) or None)
        assert note is not None
        with Redis.from_url(note.url) as connection:
            eventually(lambda: self._alive() and connection.smembers("rq:workers"))
        self.tree = tree_below(self.process.pid)
        return note.url

    def _alive(self) -> bool:
        assert self.process.poll() is None, self.log
        return True

    def pid(self, words: str) -> int:
        (found,) = [pid for pid, command in self.tree.items() if words in command]
        return found

    def kill_everything(self) -> None:
        """Every process at once, the supervisor first, so that nobody can help anybody."""
        for pid in self.tree:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


def tree_below(pid: int) -> dict[int, str]:
    tree = {pid: command_of(pid)}
    for child in children(pid):
        tree |= tree_below(child)
    return tree


def command_of(pid: int) -> str:
    shown = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(shown, capture_output=True, text=True, check=False).stdout


def runs(pid: int) -> bool:
    shown = ["ps", "-o", "stat=", "-p", str(pid)]
    seen = subprocess.run(shown, capture_output=True, text=True, check=False).stdout
    return bool(seen.strip()) and not seen.startswith("Z")
