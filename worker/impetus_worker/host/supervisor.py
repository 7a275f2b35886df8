"""Keeps one worker process a role running: spawns, watches, restarts, and stops them.

Imports no ML library and never forks without exec. Each child holds the read end of a pipe as its standard input and
stops when that closes, so nothing outlives a supervisor that was killed. What a worker says by its end is only what it
did: whether another takes its place is decided here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import uuid4

from ..errors import ConfigurationError
from .begun import BegunNote
from .restarts import Lives, Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..settings import WorkerSettings
    from .embedded_server import EmbeddedServer

EXIT_CONFIGURATION = 3
"""A worker that cannot start as told ends with this, and is not started again."""
EXIT_SHUTDOWN = 4
"""A worker that obeyed RQ's shutdown command ends with this, and another takes its place."""
_TOLD_TO_STOP = (0, EXIT_SHUTDOWN)
"""By whomever: the command comes through Redis, and a signal from any user of this machine's."""
_IN_ORDER = (*_TOLD_TO_STOP, EXIT_CONFIGURATION)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
"""What a worker is sent at the first, the second and the third stop: warm, cold, and no more asking. The first two are
told alike, and differ because a signal that waits to be heard swallows another of its kind."""
_WORKER = (sys.executable, "-P", "-m", "impetus_worker.host.worker_process")
_KILLED_S = 10.0
"""How long a killed process may take to be gone."""
_log = logging.getLogger(__name__)


def worker_name(role: str) -> str:
    """A name that no other worker process ever had."""
    return f"impetus-{role}-{socket.gethostname().split('.')[0]}-{uuid4().hex[:8]}"


@dataclass(slots=True)
class _Child:
    settings: WorkerSettings
    process: subprocess.Popen[bytes] | None = None
    note: BegunNote | None = None
    sent: set[int] = field(default_factory=set)
    """The signals by which this supervisor stopped the process."""
    lives: Lives = field(default_factory=Lives)
    exit_status: int = 0


def _log_death(name: str, begun: Sequence[str]) -> None:
    _log.warning("worker %s died; %d jobs had begun in its engine", name, len(begun))


class Supervisor:
    """Runs workers until it is told to stop or, in burst mode, until all are done.

    `server`: the embedded server, to be started again should it die. `lifeline`: a file descriptor whose end of file
    means stop. `on_death` hears of each worker process that neither ended in order nor was told to end: its name, and
    the jobs that had begun in its engine. It is called once for each, also where this supervisor killed the process,
    then with no jobs; and it must not block.
    """

    def __init__(
        self,
        workers: Sequence[WorkerSettings],
        server: EmbeddedServer | None = None,
        lifeline: int | None = None,
        *,
        on_death: Callable[[str, Sequence[str]], None] = _log_death,
        patience: Patience | None = None,
        command: Sequence[str] = _WORKER,
    ) -> None:
        """`patience` and `command` are for tests."""
        self._children = [_Child(settings) for settings in workers]
        self._server = server
        self._server_lives = Lives()
        self._server_ran = True
        self._lifeline = lifeline
        self._on_death = on_death
        self._patience = patience or Patience()
        self._command = command
        self._stops = 0

    def run(self) -> int:
        """Returns 0 when it was told to stop or all is done; else 1, or EXIT_CONFIGURATION where no worker could start
        as told."""
        with self._woken_by_signals() as waker:
            passed_on = 0
            try:
                while True:
                    now = time.monotonic()
                    for child in self._children:
                        self._look_after(child, now)
                    self._look_after_server(now)
                    while passed_on < min(self._stops, len(_PASSED_ON)):
                        self._pass_on(_PASSED_ON[passed_on])
                        passed_on += 1
                    if self._is_over():
                        return self._exit_status()
                    self._wait(waker)
            finally:
                self._end()

    # -- being told --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Iterator[socket.socket]:
        waker, wake_socket = socket.socketpair()
        with waker, wake_socket:
            waker.setblocking(False)
            wake_socket.setblocking(False)
            signal.set_wakeup_fd(wake_socket.fileno(), warn_on_full_buffer=False)
            for number in STOP_SIGNALS:
                # `nohup` has it ignored, and means that.
                if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._on_stop)
            signal.signal(signal.SIGCHLD, lambda number, frame: None)  # its byte in the waker is what is wanted
            try:
                yield waker
            finally:
                signal.set_wakeup_fd(-1)

    def _on_stop(self, number: int, frame: object) -> None:
        self._stops += 1

    def _wait(self, waker: socket.socket) -> None:
        sources: list[int | socket.socket] = [waker]
        if self._lifeline is not None and not self._stops:
            sources.append(self._lifeline)
        timeout_s = 1.0
        if not self._stops:
            starts = [child.lives.start_at for child in self._children if child.process is None]
            if not self._server_ran:
                starts.append(self._server_lives.start_at)
            timeout_s = max(0.0, min(timeout_s, min(starts, default=math.inf) - time.monotonic()))
        ready, _, _ = select.select(sources, [], [], timeout_s)
        if waker in ready:
            with contextlib.suppress(BlockingIOError):
                waker.recv(4096)
        if self._lifeline in ready:
            self._stops += 1

    def _pass_on(self, number: signal.Signals) -> None:
        running = [child for child in self._children if child.process is not None]
        if running:
            _log.info("stopping %d workers (%s)", len(running), number.name)
        for child in running:
            self._send(child, number)

    # -- one worker's lives ------------------------------------------------------------------------------------------

    def _look_after(self, child: _Child, now: float) -> None:
        if child.process is None:
            if now >= child.lives.start_at and not self._stops:
                self._start(child, now)
        elif (status := child.process.poll()) is not None:
            self._settle(child, status, now)

    def _start(self, child: _Child, now: float) -> None:
        child.lives.started_at, child.sent = now, set()
        note = None
        try:
            child.note = note = BegunNote.create()
            child.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                start_new_session=True,
                pass_fds=[note.fd],
                env={**os.environ, "PYTHONSAFEPATH": "1"},  # as -P, also for what it starts
            )
        except OSError as error:  # no process or no descriptor is to be had now
            if note is not None:
                note.close()
            child.note = None
            self._fail(child, f"could not be started: {error.strerror}", now)
            return
        assert child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once, which the next look finds
            child.process.stdin.write(replace(child.settings, begun_fd=note.fd).to_json().encode() + b"\n")
            child.process.stdin.flush()

    def _settle(self, child: _Child, status: int, now: float) -> None:
        """The process has ended: says so where it died, and decides what follows."""
        name, role = child.settings.name, child.settings.role
        if self._bury(child, status):
            child.exit_status = 0
            child.lives.end()
        elif status == EXIT_CONFIGURATION or self._stops or (status in _TOLD_TO_STOP and child.settings.burst):
            child.exit_status = status if status == EXIT_CONFIGURATION else int(status not in _IN_ORDER)
            child.lives.end()
            if status == EXIT_CONFIGURATION:
                _log.error("the %s worker cannot run as it was told; it is not started again", role)
        elif status in _TOLD_TO_STOP:
            child.settings = replace(child.settings, name=worker_name(role))
            child.lives.start_at = now + self._patience.after_shutdown_s
            _log.warning(
                "worker %s was told to shut down by others, and another takes its place; to stop for good, stop this "
                "program (Ctrl-C or SIGTERM), or the service that runs it: impetus-worker service uninstall", name
            )  # fmt: skip
        else:
            child.settings = replace(child.settings, name=worker_name(role))
            self._fail(child, f"ended ({_ending(status)})", now)

    def _bury(self, child: _Child, status: int) -> bool:
        """Forgets the process, and says that it died where that is so. Whether it was ended by our own signal."""
        assert child.process is not None
        assert child.process.stdin is not None
        assert child.note is not None
        with contextlib.suppress(BrokenPipeError):
            child.process.stdin.close()
        if status not in _IN_ORDER:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)  # or an engine that is frozen outlives its worker
        begun = child.note.read()
        child.note.close()
        child.process = child.note = None
        ours = -status in child.sent
        if status not in _IN_ORDER and (not ours or -status == signal.SIGKILL):
            self._on_death(child.settings.name, () if ours else begun)
        return ours

    def _fail(self, child: _Child, what: str, now: float) -> None:
        role = child.settings.role
        pause_s = child.lives.ended(now, self._patience)
        if child.lives.is_over:
            child.exit_status = 1
            _log.error(
                "the %s worker %s, %d times in a row within %.0f s of its start: it is given up; the log says above "
                "what ended it", role, what, child.lives.in_a_row, self._patience.healthy_s
            )  # fmt: skip
        else:
            _log.error("the %s worker %s; starting it again in %.0f s", role, what, pause_s)

    # -- the server --------------------------------------------------------------------------------------------------

    def _look_after_server(self, now: float) -> None:
        """It has served, and so it can again, once a disk has room for instance: it is never given up."""
        if self._server is None or self._stops or self._server.look_after() or now < self._server_lives.start_at:
            return
        problem = "the embedded server has ended"
        if not self._server_ran:
            self._server_lives.started_at = now
            try:
                self._server.start(is_wanted=lambda: not self._stops)
                self._server_ran = True
                return
            except ConfigurationError as error:
                problem = str(error)
        self._server_ran = False
        pause_s = self._server_lives.ended(now, replace(self._patience, most_in_a_row=sys.maxsize))
        _log.error("%s; its own log is %s; starting it again in %.0f s", problem, self._server.log, pause_s)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        if any(child.process for child in self._children):
            return self._stops > len(_PASSED_ON)  # once more than killing them: nobody is waited for
        return self._stops > 0 or all(child.lives.is_over for child in self._children)

    def _exit_status(self) -> int:
        """1 before EXIT_CONFIGURATION: what keeps services running tries the former again, and not the latter."""
        statuses = {child.exit_status for child in self._children} - {0}
        return min(statuses, default=0)

    def _end(self) -> None:
        """Leaves no process behind, whatever happened."""
        for child in self._children:
            if child.process is not None:
                self._send(child, signal.SIGKILL)
                try:
                    status = child.process.wait(_KILLED_S)
                except subprocess.TimeoutExpired:  # the system holds it, in a driver perhaps
                    _log.error("process %d does not end even when it is killed; it is left behind", child.process.pid)
                    status = -signal.SIGKILL
                self._bury(child, status)

    @staticmethod
    def _send(child: _Child, number: signal.Signals) -> None:
        assert child.process is not None
        if child.process.poll() is None:
            child.sent.add(number)
            child.process.send_signal(number)


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"killed by {name}"
