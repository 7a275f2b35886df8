"""The engine process: RQ's work horse made persistent. Both ends of its pipe live in this module.

It is spawned once, loads the model once and runs many batches. It holds no job: whatever happens to it, the worker
puts its work back and starts another. The worker and the engine are the same program at the same version, so what
crosses the pipe is pickled; nothing that came from Redis ever is anything but text and numbers there.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, EngineDiedError

if TYPE_CHECKING:
    from impetus_backends.protocol import EngineConfig, EngineInfo, Event, Work

_SIGN_OF_LIFE_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """The engine's last words: why it could not load."""

    message: str


@dataclass(frozen=True, slots=True)
class _Cancel:
    work_id: int


class EngineProcess:
    """The worker's end. `info` is None until the engine has loaded."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self.info: EngineInfo | None = None
        self._last_sign_at = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Spawns the process; it says that it is ready, or why not, by an answer to `receive()`."""
        ours, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._pipe, self.info, self._last_sign_at = ours, None, time.monotonic()
        self._tell(self._config)

    def fileno(self) -> int:
        """Readable when there is something to receive, or the process has died."""
        assert self._pipe is not None
        return self._pipe.fileno()

    def silent_s(self) -> float:
        """How long it has given no sign of life, counted from when it was last given work."""
        return time.monotonic() - self._last_sign_at

    def admit(self, work: Work) -> None:
        self._last_sign_at = time.monotonic()
        self._tell(work)

    def cancel(self, work_id: int) -> None:
        self._tell(_Cancel(work_id))

    def _tell(self, message: object) -> None:
        assert self._pipe is not None
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            # Its death is found where everything about it is: at the next receive().
            _log.debug("the engine no longer listens")

    def receive(self) -> list[Event]:
        """What the engine said, without waiting.

        Raises `EngineDiedError`, or `ConfigurationError` if it could not load.
        """
        assert self._pipe is not None
        events: list[Event] = []
        try:
            while self._pipe.poll():
                message = self._pipe.recv()
                self._last_sign_at = time.monotonic()
                if isinstance(message, LoadFailure):
                    raise ConfigurationError(message.message)
                if isinstance(message, list):
                    events += message
                else:
                    self.info = message
        except (EOFError, ConnectionResetError):
            if events:
                return events  # the end of the pipe stays readable, and is met again
            raise EngineDiedError(f"the engine process {self.pid} {_how_it_ended(self._reap())}") from None
        return events

    def kill(self) -> None:
        """Ends the process at once, whatever it is doing, and forgets it."""
        if self._process is not None:
            self._process.kill()
            self._reap()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self.info = None

    def _reap(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def serve(pipe: Connection) -> None:
    """The engine's end: loads, then runs whatever it is given until the pipe closes."""
    from impetus_backends.dispatcher import open_engine
    from impetus_backends.errors import BackendError

    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    config = pipe.recv()
    threading.Thread(target=_listen, args=(pipe, inbox), name="engine-pipe", daemon=True).start()
    try:
        engine = open_engine(config)
    except BackendError as error:
        _say(pipe, LoadFailure(str(error)))
        return
    _say(pipe, engine.info)
    heard_at = time.monotonic()
    while True:
        while not (engine.pending() and inbox.empty()):
            message = inbox.get()
            if isinstance(message, _Cancel):
                engine.cancel(message.work_id)
            else:
                engine.admit(message)  # type: ignore[arg-type]  # the worker sends nothing else
        events = engine.step()
        # A generation may take minutes: an empty list now and then says that the device still moves.
        if events or time.monotonic() - heard_at > _SIGN_OF_LIFE_S:
            _say(pipe, events)
            heard_at = time.monotonic()


def _say(pipe: Connection, message: object) -> None:
    try:
        pipe.send(message)
    except OSError:
        os._exit(0)  # the worker is gone, and nobody wants what was made: as in `_listen`, whichever finds it first


def _listen(pipe: Connection, inbox: queue.SimpleQueue[object]) -> None:
    """Moves messages out of the pipe, so that the worker's sends never block; ends the process with the worker."""
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        # Not sys.exit: the main thread may be inside the device for minutes, and nobody wants what it makes.
        os._exit(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine: %(message)s")
    serve(Connection(int(sys.argv[1])))
