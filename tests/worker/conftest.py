"""Real worker processes on the simulated backend, started and stopped by the test that asks for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import as_text

from tests.paths import ROOT
from tests.patience import eventually

from .faults.breakable import only_child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from .faults.site import Site
    from .leases.hold import Hold

T = TypeVar("T")
LIMIT_S = 30.0


def listening(connection: Redis) -> set[str]:
    """The keys of the workers in RQ's books that hear its commands, which one that has just come does not yet."""
    keys = (as_text(key) for key in connection.smembers("rq:workers"))
    channels = {key.replace("rq:worker:", "rq:pubsub:", 1).encode(): key for key in keys}
    heard: Any = connection.pubsub_numsub(*channels)
    return {channels[channel] for channel, by in heard if by}


class RunningWorker:
    """`impetus-worker run` in a process of its own."""

    def __init__(self, redis_url: str, log: Path, *options: str) -> None:
        self.log_path = log
        self._log = open(log, "wb")  # noqa: SIM115 - closed by stop()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IMPETUS_")}
        # Nothing is imported from the current folder; the callbacks that tests allow are found by this.
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "impetus_worker", "run", "--redis-url", redis_url, *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=LIMIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            self._log.close()


class Fleet:
    """Starts workers at one server and knows their processes through what they say in Redis."""

    def __init__(self, redis_url: str, connection: Redis, folder: Path) -> None:
        self.url = redis_url
        self.connection = connection
        self._folder = folder
        self.running: list[RunningWorker] = []

    def start(self, *options: str, roles: str = "embedding", wait: bool = True) -> RunningWorker:
        """A worker on the simulated backends, unless options say otherwise. Returns once it serves and hears."""
        before = listening(self.connection)
        worker = RunningWorker(
            self.url,
            self._folder / f"worker-{len(self.running)}.log",
            *("--roles", roles, "--embedding-backend", "simulated", "--generation-backend", "simulated"),
            *options,
        )
        self.running.append(worker)
        if wait:
            expected = len(roles.split(","))
            eventually(
                lambda: len(listening(self.connection) - before) >= expected or worker.process.poll() is not None
            )
            assert worker.process.poll() is None, worker.log
        return worker

    def _names(self) -> set[str]:
        return {as_text(key) for key in self.connection.smembers("rq:workers")}

    def worker_pid(self, role: str = "embedding") -> int:
        """The process of a worker of this role that lives."""
        for key in self._names():
            if f"impetus-{role}-" in key and (pid := self.connection.hget(key, "pid")):
                return int(pid)
        raise AssertionError(f"no {role} worker")

    def engine_pid(self, role: str = "embedding") -> int:
        """The engine process of that worker."""
        return only_child(self.worker_pid(role))

    def queue(self, name: str = "embedding") -> Queue:
        return Queue(name, connection=self.connection, serializer=JSONSerializer)

    def job(self, job_id: str) -> Job:
        return Job.fetch(job_id, connection=self.connection, serializer=JSONSerializer)

    def status(self, job: Job | str) -> str:
        return str(self.job(job if isinstance(job, str) else job.id).get_status().value)

    def await_status(self, job: Job | str, *wanted: str, limit_s: float = LIMIT_S) -> str:
        return eventually(lambda: next((word for word in wanted if word == self.status(job)), ""), limit_s)

    def reason(self, job: Job) -> str:
        """The last line of what a failed job says."""
        result = self.job(job.id).latest_result()
        assert result is not None
        return str(result.exc_string).strip().splitlines()[-1]


@pytest.fixture
def fleet(redis_url: str, connection: Redis, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, connection, tmp_path)
    try:
        yield fleet
    finally:
        for worker in fleet.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server and workers that the test may break."""
    from .faults.site import Site

    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.end()


@pytest.fixture
def claims(connection: Redis) -> Hold:
    """The scripts of a worker that is in RQ's books."""
    from rq import SimpleWorker
    from rq.serializers import JSONSerializer

    from .leases.hold import Hold

    worker = SimpleWorker(["embedding", "embedding-bulk"], name="w1", connection=connection, serializer=JSONSerializer)
    worker.register_birth()
    return Hold(connection, worker.name)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts `impetus-worker run` with options, as often as it is called. What still runs ends with the test."""
    from .cli.runs import Run, runs

    started: list[Run] = []

    def begin(*options: str, state: Path | None = None, **more: Any) -> Run:
        started.append(Run(state or tmp_path / "Zustände ☃" / "state", *options, **more))
        return started[-1]

    yield begin
    for each in started:
        try:
            each.stop()
        except subprocess.TimeoutExpired:
            each.process.kill()
        for pid in filter(runs, each.tree):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For a server's state; as on a Mac, where the usual one is called so."""
    return tmp_path / "Application Support" / "impetus"
