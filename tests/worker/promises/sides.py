"""RQ's promises: the same job through stock `rq.SimpleWorker` and through ours, and what a client sees of both.

Each test of this folder plays a scenario twice, once a side, and compares what it returns: mostly `Side.seen`, which
is all that Redis holds about a job, with clocks and ids taken out. Where the two differ on purpose the test states
ours and why. Ours is one worker process for all of them, on a database of its own; stock RQ runs in the test.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from redis import Redis
from rq import Callback, Queue, SimpleWorker
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from impetus_worker import jobs
from tests.patience import eventually
from tests.producer.servers.valkey import free_port
from tests.worker.conftest import RunningWorker, listening
from tests.worker.faults.breakable import only_child

from .comparing import Near

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import RedisServer

T = TypeVar("T")
EMBED = "impetus_worker.jobs.embed"
QUEUES = ("embedding", "embedding-bulk")
ERROR, HANG = "simulate:error", "simulate:hang"
CALLBACKS = "tests.worker.whole.callbacks."
ALLOWED = ("record_success", "record_failure", "record_stopped", "raise_an_error", "suspend_and_queue_another")
ON_SUCCESS, ON_FAILURE, ON_STOPPED, RAISES, SUSPENDS = (Callback(CALLBACKS + name) for name in ALLOWED)
RQ = str(Path(sys.executable).parent / "rq")
REGISTRIES = ("wip", "finished", "failed", "deferred", "scheduled", "canceled", "ready")
_TIMES = {"created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat", "worker_name"}
WEBHOOK_PORT = free_port()
"""Where tests listen on loopback: workers that outlive a test are told of it before it begins."""
_FOR_EVER_S = 10_000_000


class Side:
    """One of the two workers, and the database that only it serves."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection: Redis = Redis.from_url(url)
        self.prefix = ""
        self.began = time.monotonic()

    # -- what a client does ------------------------------------------------------------------------------------------

    def id(self, label: str) -> str:
        return self.prefix + label

    def queue(self, name: str = "embedding") -> Queue:
        return Queue(name, connection=self.connection, serializer=JSONSerializer)

    def enqueue(self, label: str, text: str = "a", queue: str = "embedding", **options: Any) -> Job:
        return self.queue(queue).enqueue(EMBED, {"input": text}, job_id=self.id(label), **options)

    def enqueue_together(self, *calls: Callable[..., Job]) -> None:
        """So that no worker sees one of them before all."""
        with self.connection.pipeline() as pipeline:
            for call in calls:
                call(pipeline=pipeline)
            pipeline.execute()

    def job(self, label: str) -> Job:
        return Job.fetch(self.id(label), connection=self.connection, serializer=JSONSerializer)

    def requeue(self, label: str) -> None:
        """As an operator does."""
        options = ["--url", self.url, "--queue", "embedding", "--serializer", "rq.serializers.JSONSerializer"]
        subprocess.run([RQ, "requeue", *options, self.id(label)], check=True, capture_output=True)

    # -- what a client sees ------------------------------------------------------------------------------------------

    def status(self, label: str) -> str | None:
        status: Any = self.connection.hget(f"rq:job:{self.id(label)}", "status")
        return status.decode() if status else None

    def seen(self, label: str) -> dict[str, Any]:
        """All that Redis holds about a job."""
        return {
            "fields": self.fields(label),
            "results": self.results(label),
            "registries": self.registries(label),
            "position": self.connection.lpos("rq:queue:embedding", self.id(label)),
            "keys": self.keys(label),
            "calls": [call.replace(" traceback", " NoneType") for call in self.calls(label)],
        }

    def fields(self, label: str) -> dict[str, Any]:
        """The job's hash: times and the worker's name as whether they are set, ids without the test's prefix."""
        fields: dict[str, Any] = {}
        raw: Any = self.connection.hgetall(f"rq:job:{self.id(label)}")
        for name, value in ((name.decode(), value) for name, value in raw.items()):
            if name in _TIMES:
                fields[name] = bool(value)
            elif name == "result":
                fields[name] = json.loads(value)["embeddings"]
            elif name != "impetus_execution":
                text = (zlib.decompress(value) if name in ("data", "exc_info") else value).decode()
                fields[name] = text.replace(self.prefix, "")
        return fields

    def results(self, label: str) -> list[tuple[str, str | None, str | None]]:
        """The newest first: type, the return value's type, the last line of the reason."""
        job = Job(self.id(label), connection=self.connection, serializer=JSONSerializer)
        return [
            (
                result.type.name,
                None if result.return_value is None else type(result.return_value).__name__,
                str(result.exc_string).strip().splitlines()[-1] if result.exc_string else None,
            )
            for result in Result.all(job, serializer=JSONSerializer)
        ]

    def registries(self, label: str) -> dict[str, Any]:
        """Those the job is in, and for how long."""
        found: dict[str, Any] = {}
        now = time.time()
        for registry in REGISTRIES:
            for queue in QUEUES:
                entries: Any = self.connection.zrange(f"rq:{registry}:{queue}", 0, -1, withscores=True)
                for member, score in entries:
                    if member.decode().partition(":")[0] == self.id(label):
                        left = math.inf if score < 0 else score - now
                        found[f"{registry}:{queue}"] = self._ends_in(left)
        return found

    def keys(self, label: str) -> dict[str, Any]:
        """Every key with the job's id in its name, with its time to live."""
        found: dict[str, Any] = {}
        for key in self.connection.scan_iter(match=f"*{self.id(label)}*", count=10_000):
            if not key.startswith(b"calls:"):
                ttl = int(self.connection.ttl(key))
                # RQ keeps the reason of a failed job for ever where the job says nothing, ours as long as the job.
                name = re.sub(r":[0-9a-f]{20,}\b", ":<execution>", key.decode().replace(self.prefix, ""))
                found[name] = self._ends_in(math.inf if ttl < 0 else ttl)
        return found

    def _ends_in(self, seconds: float) -> str | Near:
        return "for ever" if seconds > _FOR_EVER_S else Near(seconds, time.monotonic() - self.began)

    def calls(self, label: str) -> list[str]:
        """The callbacks that ran, with the types of their arguments."""
        calls: Any = self.connection.lrange(f"calls:{self.id(label)}", 0, -1)
        return [call.decode() for call in calls]

    def calls_in_order(self) -> list[str]:
        calls: Any = self.connection.lrange("calls", 0, -1)
        return [call.decode().removeprefix(self.prefix) for call in calls if call.decode().startswith(self.prefix)]

    def reason(self, label: str) -> str:
        return str(self.results(label)[0][2])

    # -- what differs between the sides ------------------------------------------------------------------------------

    def until(self, look: Callable[[], T]) -> T:
        """Lets the worker work until `look` returns something true."""
        raise NotImplementedError

    def until_status(self, label: str, *wanted: str | None) -> None:
        self.until(lambda: self.status(label) in wanted)

    def until_scheduled(self, label: str) -> None:
        """RQ writes this status of a job that it tries again before it writes all the rest."""
        self.until(lambda: "scheduled:embedding" in self.registries(label))

    def finish_scheduled(self, label: str, *wanted: str | None) -> None:
        """Turns the clock of a scheduled job to now, and lets it run."""
        self.connection.zadd("rq:scheduled:embedding", {self.id(label): 0}, xx=True)
        self.until_status(label, *wanted)

    def counters(self) -> tuple[int, int, bool]:
        """Of the worker since the test began: jobs finished, jobs failed, whether it counted its time."""
        raise NotImplementedError

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing starts before the block ends."""
        suspend(self.connection)
        try:
            yield
        finally:
            resume(self.connection)

    def engine_held(self) -> AbstractContextManager[None]:
        """What the engine has begun does not end before the block does."""
        return nullcontext()


class DeafWorker(SimpleWorker):
    """Stock in all but that it listens to no commands, whose thread takes a second to end."""

    def subscribe(self) -> None:
        pass


class Stock(Side):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._counted = [0, 0, 0.0]

    def start_test(self, prefix: str) -> None:
        self.prefix = prefix
        self.connection.flushdb()
        self._counted = [0, 0, 0.0]

    def work(self) -> None:
        worker = DeafWorker(list(QUEUES), connection=self.connection, serializer=JSONSerializer)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            worker.work(burst=True, with_scheduler=True, logging_level="CRITICAL")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        worker.refresh()  # type: ignore[no-untyped-call]
        counted = (worker.successful_job_count, worker.failed_job_count, worker.total_working_time)
        self._counted = [sum(pair) for pair in zip(self._counted, counted, strict=True)]

    def until(self, look: Callable[[], T]) -> T:
        def work_and_look() -> T:
            self.work()
            return look()

        return eventually(work_and_look, limit_s=10)

    def counters(self) -> tuple[int, int, bool]:
        return int(self._counted[0]), int(self._counted[1]), self._counted[2] > 0


class Ours(Side):
    def __init__(self, url: str, log: Path, *options: str) -> None:
        super().__init__(url)
        self.connection.flushdb()
        self.running = RunningWorker(
            url,
            log,
            *("--roles", "embedding", "--embedding-backend", "simulated"),
            *("--allow-callbacks", ",".join(CALLBACKS + name for name in ALLOWED)),
            *("--allow-webhooks", f"127.0.0.1:{WEBHOOK_PORT}"),
            *options,
        )
        self._before = (0, 0, 0.0)

    def start_test(self, prefix: str) -> None:
        self.prefix = prefix
        resume(self.connection)
        eventually(lambda: listening(self.connection) or self.running.process.poll() is not None)
        assert self.running.process.poll() is None, self.running.log
        eventually(lambda: not any(self.connection.llen(f"rq:queue:{queue}") for queue in QUEUES), limit_s=5)
        self._before = self._counted()

    def until(self, look: Callable[[], T]) -> T:
        try:
            return eventually(look, limit_s=10)
        except AssertionError:
            print(self.running.log[-3000:])
            raise

    def counters(self) -> tuple[int, int, bool]:
        finished, failed, worked = (now - then for now, then in zip(self._counted(), self._before, strict=True))
        return int(finished), int(failed), worked > 0

    def _counted(self) -> tuple[int, int, float]:
        key = self.worker_key()
        values: Any = self.connection.hmget(key, "successful_job_count", "failed_job_count", "total_working_time")
        return int(values[0] or 0), int(values[1] or 0), float(values[2] or 0)

    def is_idle(self) -> bool:
        return self.connection.hget(self.worker_key(), "state") == b"idle"

    @contextmanager
    def engine_held(self) -> Iterator[None]:
        worker: Any = self.connection.hget(self.worker_key(), "pid")
        engine = only_child(int(worker))
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # nobody wanted what it was at, and another took its place
                os.kill(engine, signal.SIGCONT)

    def worker_key(self) -> str:
        keys: Any = self.connection.smembers("rq:workers")
        (key,) = keys
        return str(key.decode())


@contextmanager
def our_worker(redis_server: RedisServer, database: int, log: Path, *options: str) -> Iterator[Ours]:
    ours = Ours(f"redis://{redis_server.host}:{redis_server.port}/{database}", log, *options)
    try:
        yield ours
    finally:
        ours.running.stop()
        ours.connection.close()


@contextmanager
def burst(redis_server: RedisServer, log: Path) -> Iterator[Ours]:
    """An empty database; a worker of ours serves it until its queues are empty, when the block ends."""
    url = f"redis://{redis_server.host}:{redis_server.port}/8"
    side = Ours.__new__(Ours)
    Side.__init__(side, url)
    side.connection.flushdb()
    try:
        yield side
        options = ("--roles", "embedding", "--embedding-backend", "simulated", "--burst")
        allowed = ("--allow-callbacks", ",".join(CALLBACKS + name for name in ALLOWED))
        side.running = RunningWorker(url, log, *options, *allowed)
        try:
            assert side.running.process.wait(timeout=90) == 0, side.running.log
        finally:
            side.running.stop()
    finally:
        side.connection.close()


@contextmanager
def stock_process(url: str, worker_class: str) -> Iterator[subprocess.Popen[bytes]]:
    """`rq worker`, as an operator starts it."""
    options = ("--url", url, "--worker-class", worker_class, "--serializer", "rq.serializers.JSONSerializer")
    process = subprocess.Popen(
        [RQ, "worker", *options, "--quiet", *QUEUES],
        env={**os.environ, "IMPETUS_EMBEDDING_BACKEND": "simulated"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def while_running(side: Side, label: str, meddle: Callable[[], object], **options: Any) -> None:
    """Runs a job, meddles once it has started, and waits for the worker to be done with it."""
    if isinstance(side, Ours):
        with side.engine_held():
            side.enqueue(label, **options)
            eventually(lambda: side.status(label) == "started")
            meddle()
        eventually(side.is_idle)
    else:
        genuine = jobs.embed

        def embed(request: dict[str, Any]) -> dict[str, Any]:
            meddle()
            return genuine(request)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jobs, "embed", embed)
            side.enqueue(label, **options)
            side.until(lambda: True)
    side.enqueue(f"{label}-next")
    side.until_status(f"{label}-next", "finished")
