"""Keeps one worker process a role running: spawns, watches, restarts, and stops them, and the server if it is ours.

Imports no ML library and never forks without exec. Each child holds the read end of a pipe as its standard input and
stops when that closes, so nothing outlives a supervisor that was killed.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..settings import WorkerSettings
    from .embedded_server import EmbeddedServer

EXIT_CONFIGURATION = 3
"""A worker that cannot start as told ends with this, and is not started again."""
_HEALTHY_S = 60.0
_MAX_BACKOFF_S = 30.0
_log = logging.getLogger(__name__)


def worker_name(role: str) -> str:
    """A name that no other worker process ever had."""
    return f"impetus-{role}-{socket.gethostname().split('.')[0]}-{uuid4().hex[:8]}"


@dataclass(slots=True)
class _Child:
    settings: WorkerSettings
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    """When to start it next, on the monotonic clock; infinity when it is over."""
    failures: int = 0
    exit_status: int | None = field(default=None)


class Supervisor:
    """Runs workers until it is told to stop or, in burst mode, until all are done.

    `server`: the embedded server, if it is ours to keep. `lifeline`: a file descriptor whose end of file means stop.
    """

    def __init__(
        self, workers: Sequence[WorkerSettings], server: EmbeddedServer | None = None, lifeline: int | None = None
    ) -> None:
        self._children = [_Child(settings) for settings in workers]
        self._server = server
        self._lifeline = lifeline
        self._stops = 0

    def run(self) -> int:
        """Returns 0, or the exit status of the worst worker that ended by itself."""
        waker, wake_socket = socket.socketpair()
        waker.setblocking(False)
        wake_socket.setblocking(False)
        signal.set_wakeup_fd(wake_socket.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # its byte in the waker is what is wanted
        stops_passed_on = 0
        try:
            while True:
                now = time.monotonic()
                for child in self._children:
                    self._look_after(child, now)
                if self._server is not None and not self._server.is_alive() and not self._stops:
                    _log.error("the embedded server died: starting it again")
                    self._server.start()
                if stops_passed_on < self._stops:
                    stops_passed_on = self._stops
                    self._pass_on_stop()
                if not any(child.process for child in self._children) and (
                    self._stops or all(child.start_at == float("inf") for child in self._children)
                ):
                    return max((child.exit_status or 0 for child in self._children), default=0)
                self._wait(waker)
        finally:
            signal.set_wakeup_fd(-1)
            self._end()

    def _on_stop(self, number: int, frame: object) -> None:
        self._stops += 1

    def _wait(self, waker: socket.socket) -> None:
        sources: list[int | socket.socket] = [waker]
        if self._lifeline is not None and not self._stops:
            sources.append(self._lifeline)
        ready, _, _ = select.select(sources, [], [], 1.0)
        if waker in ready:
            with contextlib.suppress(BlockingIOError):
                waker.recv(4096)
        if self._lifeline in ready:
            self._stops += 1

    def _look_after(self, child: _Child, now: float) -> None:
        if child.process is None:
            if now >= child.start_at and not self._stops:
                self._start(child, now)
            return
        status = child.process.poll()
        if status is None:
            return
        assert child.process.stdin is not None
        child.process.stdin.close()
        child.process = None
        role = child.settings.role
        if status in (0, EXIT_CONFIGURATION) or self._stops:
            child.exit_status = status
            child.start_at = float("inf")
            if status == EXIT_CONFIGURATION:
                _log.error("the %s worker cannot run as it was told; it is not started again", role)
            return
        child.failures = 1 if now - child.started_at > _HEALTHY_S else child.failures + 1
        backoff_s = 0.0 if child.failures == 1 else min(_MAX_BACKOFF_S, 2.0 ** (child.failures - 2))
        child.start_at = now + backoff_s
        _log.error("the %s worker ended (%s); starting it again in %.0f s", role, _ending(status), backoff_s)
        child.settings = replace(child.settings, name=worker_name(role), predecessor=child.settings.name)

    def _start(self, child: _Child, now: float) -> None:
        child.process = subprocess.Popen(
            [sys.executable, "-m", "impetus_worker", "work"], stdin=subprocess.PIPE, start_new_session=True
        )
        child.started_at = now
        assert child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once, which the next look finds
            child.process.stdin.write(child.settings.to_json().encode() + b"\n")
            child.process.stdin.flush()

    def _pass_on_stop(self) -> None:
        running = [child for child in self._children if child.process is not None]
        if running:
            _log.info("stopping %d workers", len(running))
        for child in running:
            assert child.process is not None
            child.process.send_signal(signal.SIGTERM if self._stops < 3 else signal.SIGKILL)

    def _end(self) -> None:
        """Leaves no process behind, whatever happened."""
        for child in self._children:
            if child.process is not None:
                child.process.kill()
                child.process.wait()
        if self._server is not None:
            self._server.stop()


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
