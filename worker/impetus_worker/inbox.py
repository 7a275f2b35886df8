"""What a worker is told from outside, as what its loop can wait for: signals, commands, the end of its supervisor."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from rq.command import parse_payload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHUTDOWN, SUPERVISOR_GONE = "shutdown", "supervisor-gone"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    """RQ's word (shutdown, stop-job, stop-execution, kill-horse), or `SUPERVISOR_GONE`."""
    job_id: str = ""


class Inbox:
    """Commands in the order in which they came, from any thread. `lifeline`: a descriptor whose end means stop."""

    def __init__(self, lifeline: int | None = None) -> None:
        self._commands: deque[Command] = deque()
        self._lifeline = lifeline
        self._waker, self._wake_socket = socket.socketpair()
        for end in (self._waker, self._wake_socket):
            end.setblocking(False)

    def open(self) -> None:
        """From now on SIGINT and SIGTERM are commands. Call it in the main thread."""
        signal.set_wakeup_fd(self._wake_socket.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._commands.append(Command(SHUTDOWN)))

    def close(self) -> None:
        signal.set_wakeup_fd(-1)

    def receive(self, message: dict[str, Any]) -> None:
        """A message of RQ's command channel; called from a thread of redis-py's."""
        try:
            payload: object = parse_payload(message)
        except ValueError:
            payload = None
        if not isinstance(payload, dict) or not isinstance(payload.get("job_id", ""), str):
            _log.warning("ignoring a command that is none: %.200r", message.get("data"))
            return
        self._commands.append(Command(str(payload.get("command")), payload.get("job_id", "")))
        self.wake()

    def wake(self) -> None:
        """Ends a wait, from any thread."""
        with contextlib.suppress(OSError):
            self._wake_socket.send(b"\0")

    def commands(self) -> Iterator[Command]:
        while self._commands:
            yield self._commands.popleft()

    def wait(self, sources: Sequence[Any], timeout_s: float | None) -> list[Any]:
        """Waits for any of the sources, or for a command; returns the sources that are ready."""
        lifeline = [] if self._lifeline is None else [self._lifeline]
        ready = wait([*sources, self._waker, *lifeline], None if timeout_s is None else max(0.0, timeout_s))
        if self._waker in ready:
            with contextlib.suppress(BlockingIOError):
                self._waker.recv(4096)
        if lifeline and self._lifeline in ready:
            self._lifeline = None  # it stays readable for ever, and has said what it had to say
            self._commands.append(Command(SUPERVISOR_GONE))
        return [source for source in sources if source in ready]
