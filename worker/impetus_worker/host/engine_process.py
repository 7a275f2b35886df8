"""The engine process: RQ's work horse made persistent. Both ends of its pipe live in this module.

It is spawned once, loads the model once and runs many batches. It holds no job: whatever happens to it, the worker
puts its work back and starts another. The worker's loop never waits for it: on our side a thread reads, and a thread
writes whatever the pipe has no room for yet.
"""

from __future__ import annotations

import logging
import pickle
import queue
import select
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from impetus_backends.machine.footprint import Use

from .. import logs
from ..inbox import EngineEnded, EngineHas, EngineLoaded, EngineRefused, EngineSaid, EngineTries
from . import child

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from impetus_backends.engine_config import EngineConfig
    from impetus_backends.protocol import EngineInfo, Work

_SIGN_OF_LIFE_S = 1.0
_AT_ONCE_BYTES = 2000
"""A socket that can be written to has room for so much: on Linux for more, on macOS for 2,048."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """The engine's last words: why it could not load."""

    message: str


@dataclass(frozen=True, slots=True)
class Trying:
    """The engine is about to load this backend, or with an empty name none any more."""

    backend: str


@dataclass(frozen=True, slots=True)
class _Cancel:
    work_id: int


@dataclass(frozen=True, slots=True)
class _Spare:
    """Whether the machine has power to spare for what nobody waits for."""

    allowed: bool


class Letters:
    """What is said to the engine, in its order. Who puts waits for nothing.

    A small one is written at once, where none waits before it and the pipe has room: to wake a thread takes longer. The
    others are written by a thread, which may wait for as long as the engine does not read: with a large prompt, or a
    small buffer.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._has_room = select.poll()
        self._has_room.register(pipe.fileno(), select.POLLOUT)
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._left = self._written = 0
        """How many were left to the thread, and how many it has written. Each is counted by one thread."""
        threading.Thread(target=self._write, name="engine-writer", daemon=True).start()

    def put(self, letter: object) -> None:
        packed = pickle.dumps(letter)
        if self._left == self._written and len(packed) <= _AT_ONCE_BYTES and self._has_room.poll(0):
            self._send(packed)
        else:
            self._left += 1
            self._waiting.put(packed)

    def end(self) -> None:
        """Nothing more is put."""
        self._waiting.put(None)

    def _write(self) -> None:
        while (packed := self._waiting.get()) is not None:
            self._send(packed)
            self._written += 1

    def _send(self, packed: bytes) -> None:
        with suppress(OSError):  # its death is found where everything about it is: by who reads
            self._pipe.send_bytes(packed)


class EngineProcess:
    """The worker's end; no method waits. What the engine says is told to `tell`, as facts of the inbox.

    `info` is what it loaded, as far as the loop has heard. `clock` is the loop's: seconds awake.
    """

    def __init__(self, tell: Callable[[object], None], clock: Callable[[], float]) -> None:
        self.life = 0
        """How many processes were started; facts about an earlier one are old news."""
        self.info: EngineInfo | None = None
        self._tell = tell
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._letters: Letters | None = None
        self._sign_at = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self, config: EngineConfig) -> None:
        """Spawns the process, which then says that it is ready, or why not."""
        self.kill()
        self.life += 1
        self._process, ours = child.spawn(__name__)
        self._letters = Letters(ours)
        self._letters.put(config)
        self._sign_at = self._clock()
        reader = (ours, self._letters, self._process, self.life, self._tell)
        threading.Thread(target=_read, args=reader, name="engine-reader", daemon=True).start()

    def admit(self, work: Work, *, idle: bool) -> None:
        """Gives it work; `idle`: it had none, so that its silence counts from now."""
        if idle:
            self._sign_at = self._clock()
        self._say(work)

    def cancel(self, work_id: int) -> None:
        self._say(_Cancel(work_id))

    def say_spare(self, allowed: bool) -> None:
        """Whether it may do what nobody waits for; until it is told, it may not."""
        self._say(_Spare(allowed))

    def _say(self, letter: object) -> None:
        if self._letters is not None:
            self._letters.put(letter)

    def heard(self) -> None:
        """It gave a sign of life."""
        self._sign_at = self._clock()

    def silent_s(self) -> float:
        """How long it gave no sign of life, counted from when it was last given work while it had none."""
        return self._clock() - self._sign_at

    def kill(self) -> None:
        """Ends the process at once, whatever it is doing, and forgets it; its threads clear up after it."""
        if self._process is not None:
            child.kill(self._process)
            self._process = self._letters = None
        self.info = None


def _read(
    pipe: Connection,
    letters: Letters,
    process: subprocess.Popen[bytes],
    life: int,
    tell: Callable[[object], None],
) -> None:
    try:
        while True:
            message = pipe.recv()
            if isinstance(message, LoadFailure):
                tell(EngineRefused(life, message.message))
            elif isinstance(message, Trying):
                tell(EngineTries(life, message.backend))
            elif isinstance(message, Use):
                tell(EngineHas(life, message))
            elif isinstance(message, list):
                tell(EngineSaid(life, message))
            else:
                tell(EngineLoaded(life, message))
    except (EOFError, OSError):
        pass
    except Exception:  # noqa: BLE001 - half a message of a process that was killed may unpickle to anything
        _log.warning("the engine's last message could not be read", exc_info=True)
    tell(EngineEnded(life, f"the engine process {process.pid} {child.reap(process)}"))
    letters.end()  # the pipe is closed when none of the three that know it does any more


def serve(pipe: Connection) -> None:
    """The engine's end: loads, then runs whatever it is given until the pipe closes."""
    from impetus_backends.dispatcher import memory_watch, open_engine
    from impetus_backends.errors import BackendError
    from impetus_backends.machine import spare

    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    config = pipe.recv()
    threading.Thread(target=child.listen, args=(pipe, inbox), name="engine-pipe", daemon=True).start()
    try:
        engine = open_engine(config, on_attempt=lambda backend: child.say(pipe, Trying(backend)))
    except BackendError as error:
        child.say(pipe, LoadFailure(str(error)))
        return
    child.say(pipe, engine.info)
    heard_at, watch = time.monotonic(), memory_watch(config)
    while True:
        if (use := watch.look()) is not None:
            child.say(pipe, use)
        while not (engine.pending() and inbox.empty()):
            message = inbox.get()
            if isinstance(message, _Cancel):
                engine.cancel(message.work_id)
            elif isinstance(message, _Spare):
                spare.say(message.allowed)
            else:
                engine.admit(message)  # type: ignore[arg-type]  # the worker sends nothing else
        events = engine.step()
        # A generation may take minutes: an empty list now and then says that the device still moves.
        if events or time.monotonic() - heard_at > _SIGN_OF_LIFE_S:
            child.say(pipe, events)
            heard_at = time.monotonic()


def main() -> None:
    pipe = child.theirs()
    logs.set_up("engine")
    serve(pipe)
