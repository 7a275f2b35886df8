"""Servers, workers and peers for the time of a `with` block. Nothing outlives the bench, not even its being killed:
each child holds the read end of a pipe and ends when that closes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impetus_producer import connect
from impetus_worker.host.embedded_server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from redis import Redis

START_LIMIT_S = 120.0
_FAREWELL_S = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    connection: Redis
    folder: Path
    """For logs and whatever else the bench needs on disk; gone afterwards."""

    def cpu_s(self) -> float:
        """The CPU time that the server has used."""
        info: Any = self.connection.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def used_bytes(self) -> int:
        info: Any = self.connection.info("memory")
        return int(info["used_memory"])


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """The server that `impetus-worker run` brings, as it configures it (append-only file, fsync each second), except
    that it does not rewrite its file in the middle of a measurement."""
    folder = Path(tempfile.mkdtemp(prefix="impetus-bench-"))
    embedded = EmbeddedServer(folder, listen="127.0.0.1:0")  # where the peers reach it too
    try:
        embedded.start()
        connection = connect(embedded.listens_at)
        connection.config_set("auto-aof-rewrite-percentage", 0)
        yield Server(embedded.listens_at, connection, folder)
    finally:
        embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def child(
    command: Sequence[str | Path],
    log: Path,
    *,
    first_line: bytes = b"",
    environment: Mapping[str, str] | None = None,
    answers: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its standard input does; by signals if it will not.

    `environment` is added to this process's own. `answers`: its standard output is a pipe, and only what it says on
    standard error goes to the log.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("IMPETUS_")}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else output,
            stderr=output,
            env=inherited | dict(environment or {}),
            start_new_session=True,  # Ctrl-C is for the bench, which then ends its children in order
        )
    assert process.stdin is not None
    try:
        if first_line:
            process.stdin.write(first_line)
            process.stdin.flush()
        yield process
    finally:
        end([process])


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends processes together: their input closes, then SIGTERM, then SIGKILL to each one's whole session."""
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if number is not None and process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
        deadline = time.monotonic() + _FAREWELL_S
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.01, deadline - time.monotonic()))
        if all(process.poll() is not None for process in processes):
            return


@contextlib.contextmanager
def worker(
    on: Server,
    *options: str,
    role: str = "embedding",
    environment: Mapping[str, str] | None = None,
    limit_s: float = START_LIMIT_S,
) -> Iterator[None]:
    """`impetus-worker run --roles ROLE OPTIONS`, from when it serves its queues."""
    before = int(on.connection.scard("rq:workers"))
    log = on.folder / "worker.log"
    command = [sys.executable, "-m", "impetus_worker", "run", "--redis-url", on.url, "--roles", role]
    with child([*command, "--until-stdin-closes", *options], log, environment=environment) as process:
        await_true(lambda: int(on.connection.scard("rq:workers")) > before, process, log, limit_s)
        yield


def await_true(
    look: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, limit_s: float = START_LIMIT_S
) -> None:
    """Polls until `look` says yes; ends the bench with the process's last words if it is gone or takes too long."""
    deadline = time.monotonic() + limit_s
    while not look():
        if process.poll() is not None or time.monotonic() > deadline:
            words = "\n  ".join(log.read_text(errors="replace").splitlines()[-8:])
            state = "ended" if process.poll() is not None else f"was not ready in {limit_s:g} s"
            raise click.ClickException(f"{Path(str(process.args[0])).name} {state}:\n  {words}")  # type: ignore[index]
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Rate:
    per_s: float
    counted: int
    seconds: float
    complete: bool
    """Whether everything was done before the time was over."""


def steady_rate(
    done: Callable[[], int],
    total: int,
    *,
    from_share: float = 0.05,
    to_share: float = 1.0,
    limit_s: float,
    poll_s: float = 0.01,
) -> Rate:
    """Things done a second, between the first look at which `from_share` of `total` are done and the one at which
    `to_share` are: so start-up is not counted. After `limit_s` it counts what was done until then."""
    begun = time.monotonic()
    first: tuple[float, int] | None = None
    while True:
        count, now = done(), time.monotonic()
        if first is None and count >= from_share * total:
            first = (now, count)
        complete = count >= to_share * total
        if complete or now - begun > limit_s:
            if first is None or count <= first[1]:
                return Rate(float("nan"), 0, now - begun, False)
            return Rate((count - first[1]) / (now - first[0]), count - first[1], now - first[0], complete)
        time.sleep(poll_s)


def cpu_of_processes(pids: Sequence[int]) -> float | None:
    """CPU seconds that these processes have used; None where the system does not tell (it is read from /proc)."""
    try:
        ticks = 0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def children_of(pid: int) -> list[int]:
    """The processes that this one started and that still run; empty where the system does not tell."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [int(each) for each in found]


def worker_processes(on: Server) -> tuple[list[int], list[int]]:
    """(workers' pids, their engines' pids) on this machine."""
    keys: Any = on.connection.smembers("rq:workers")
    workers = [int(pid) for key in keys if (pid := on.connection.hget(key, "pid"))]
    return workers, [engine for pid in workers for engine in children_of(pid)]
