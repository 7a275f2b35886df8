"""RQ's promises: the same job through stock `rq.SimpleWorker` and through ours, and what a client sees of both.

Each test plays a scenario twice, once a side, and compares what it returns: mostly `Side.seen`, which is all that
Redis holds about a job, with clocks and ids taken out. Where the two differ on purpose the test states ours and why.
Ours is one worker process for the whole module, on a database of its own; stock RQ runs in the test.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from redis import Redis
from rq import Callback, Queue, Repeat, Retry, SimpleWorker
from rq.command import send_stop_execution_command, send_stop_job_command
from rq.exceptions import DuplicateJobError
from rq.group import Group
from rq.job import Dependency, Job
from rq.rate_limit import RateLimit, RateLimitRegistry
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend
from rq.webhook import Webhook

from impetus_worker import jobs
from impetus_worker.claims import Claims

from .conftest import RunningWorker, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RedisServer

# RQ's own time limit of a job takes the signal that pytest-timeout would use.
pytestmark = [pytest.mark.system, pytest.mark.timeout(60, method="thread")]

T = TypeVar("T")
EMBED = "impetus_worker.jobs.embed"
QUEUES = ("embedding", "embedding-bulk")
ERROR, HANG = "simulate:error", "simulate:hang"
CALLBACKS = "tests.worker.callbacks."
ALLOWED = ("record_success", "record_failure", "record_stopped", "raise_an_error", "suspend_and_queue_another")
ON_SUCCESS, ON_FAILURE, ON_STOPPED, RAISES, SUSPENDS = (Callback(CALLBACKS + name) for name in ALLOWED)
RQ = str(Path(sys.executable).parent / "rq")
REGISTRIES = ("wip", "finished", "failed", "deferred", "scheduled", "canceled", "ready")
_TIMES = {"created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat", "worker_name"}
_FOR_EVER_S = 10_000_000
_test_numbers = count(1)


class Near:
    """Seconds that equal any others within 5 of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Near):
            other = other.seconds
        return isinstance(other, (int, float)) and abs(self.seconds - other) <= 5

    def __hash__(self) -> int:
        raise TypeError("equality within a tolerance allows no hash")

    def __repr__(self) -> str:
        return f"~{self.seconds:.0f} s"


class Side:
    """One of the two workers, and the database that only it serves."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection: Redis = Redis.from_url(url)
        self.prefix = ""

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
                        found[f"{registry}:{queue}"] = "for ever" if left > _FOR_EVER_S else Near(left)
        return found

    def keys(self, label: str) -> dict[str, Any]:
        """Every key with the job's id in its name, with its time to live."""
        found: dict[str, Any] = {}
        for key in self.connection.scan_iter(match=f"*{self.id(label)}*", count=10_000):
            if not key.startswith(b"calls:"):
                ttl = int(self.connection.ttl(key))
                # RQ keeps the reason of a failed job for ever where the job says nothing, ours as long as the job.
                name = re.sub(r":[0-9a-f]{20,}\b", ":<execution>", key.decode().replace(self.prefix, ""))
                found[name] = "for ever" if ttl < 0 or ttl > _FOR_EVER_S else Near(ttl)
        return found

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
            *options,
        )
        self._before = (0, 0, 0.0)

    def start_test(self, prefix: str) -> None:
        self.prefix = prefix
        resume(self.connection)
        eventually(lambda: self.connection.smembers("rq:workers") or self.running.process.poll() is not None)
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

    def worker_key(self) -> str:
        keys: Any = self.connection.smembers("rq:workers")
        (key,) = keys
        return str(key.decode())


class Both:
    def __init__(self, ours: Ours, stock: Stock) -> None:
        self.ours, self.stock = ours, stock

    def agree(self, scenario: Callable[[Side], T]) -> T:
        """What the scenario comes to on both sides."""
        theirs = scenario(self.stock)
        ours = scenario(self.ours)
        different = "\n".join(differences(ours, theirs))
        assert not different, different
        return ours


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """One line for each place where they differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}, key=str):
            yield from differences(ours.get(key), theirs.get(key), f"{where}/{key}")
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        for position, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{where}/{position}")
    elif ours != theirs:
        yield f"{where}: ours {ours!r:.200}, RQ's {theirs!r:.200}"


@pytest.fixture(scope="module")
def stock_url(redis_server: RedisServer) -> Iterator[str]:
    """A database for stock workers in this process, whose jobs run on the simulated backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPETUS_EMBEDDING_BACKEND", "simulated")
        jobs._engine.cache_clear()
        yield f"redis://{redis_server.host}:{redis_server.port}/4"
        jobs._engine.cache_clear()


@contextmanager
def our_worker(redis_server: RedisServer, database: int, log: Path, *options: str) -> Iterator[Ours]:
    ours = Ours(f"redis://{redis_server.host}:{redis_server.port}/{database}", log, *options)
    try:
        yield ours
    finally:
        ours.running.stop()
        ours.connection.close()


@pytest.fixture(scope="module")
def our_side(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    with our_worker(redis_server, 5, tmp_path_factory.mktemp("ours") / "log") as ours:
        yield ours


@pytest.fixture(scope="module")
def slow_side(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    """A worker of ours whose batches take so long that a test can meddle with a running job."""
    options = ("--simulated-a-ms", "1000", "--max-batch-texts", "1")
    with our_worker(redis_server, 6, tmp_path_factory.mktemp("slow") / "log", *options) as ours:
        yield ours


@pytest.fixture
def both(our_side: Ours, stock_url: str) -> Iterator[Both]:
    both = Both(our_side, Stock(stock_url))
    prefix = f"test{next(_test_numbers)}-"
    both.ours.start_test(prefix)
    both.stock.start_test(prefix)
    yield both
    both.stock.connection.close()


@pytest.fixture
def slow(slow_side: Ours, stock_url: str) -> Iterator[Both]:
    slow = Both(slow_side, Stock(stock_url))
    prefix = f"test{next(_test_numbers)}-"
    slow.ours.start_test(prefix)
    slow.stock.start_test(prefix)
    yield slow
    slow.stock.connection.close()


# -- results and how long they are kept ------------------------------------------------------------------------------


def test_a_finished_job_leaves_what_rqs_own_leaves(both: Both) -> None:
    def scenario(side: Side) -> Any:
        job = side.enqueue("job", description="three words long", meta={"who": "me"})
        side.until_status("job", "finished")
        value = side.job("job").return_value()
        assert value is not None
        return side.seen("job"), value["embeddings"], job.id == side.id("job"), side.counters()

    seen, _, kept_its_id, counters = both.agree(scenario)
    assert kept_its_id
    assert counters == (1, 0, True)
    assert seen["fields"]["description"] == "three words long"
    assert seen["keys"] == {"rq:job:job": 500, "rq:results:job": 500}


def test_a_failed_job_leaves_what_rqs_own_leaves(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR)
        side.until_status("job", "failed")
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert counters == (0, 1, True)
    assert seen["results"] == [
        (
            "FAILED",
            None,
            "impetus_worker.errors.InferenceError: simulated: RuntimeError: a simulated error of the device",
        )
    ]


@pytest.mark.parametrize("result_ttl", [-1, 0, 100])
def test_a_result_is_kept_for_its_result_ttl(both: Both, result_ttl: int) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", result_ttl=result_ttl)
        side.enqueue("next")
        side.until_status("next", "finished")
        side.until_status("job", None if result_ttl == 0 else "finished")
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert counters[0] == 2
    assert seen["keys"].get("rq:results:job") == {-1: "for ever", 0: None, 100: Near(100)}[result_ttl]


@pytest.mark.parametrize("failure_ttl", [-1, 0, 100])
def test_a_failed_job_is_kept_for_its_failure_ttl(both: Both, failure_ttl: int) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, failure_ttl=failure_ttl)
        side.until(lambda: "failed:embedding" in side.registries("job"))
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert counters[1] == 1
    assert seen["keys"].get("rq:job:job") == {-1: "for ever", 0: None, 100: Near(100)}[failure_ttl]


def test_a_job_whose_ttl_ran_out_in_the_queue_is_passed_over(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            side.enqueue("late", ttl=60)
            side.enqueue("timely", ttl=60)
            assert side.keys("late") == {"rq:job:late": 60}
            side.connection.pexpire(f"rq:job:{side.id('late')}", 1)
            eventually(lambda: side.status("late") is None)
        side.until_status("timely", "finished")
        return side.seen("late"), side.seen("timely")

    late, timely = both.agree(scenario)
    assert late["keys"] == {}
    assert timely["keys"]["rq:job:timely"] == 500


# -- failing and trying again ----------------------------------------------------------------------------------------


def test_a_job_is_retried_as_often_as_its_retry_says(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, retry=Retry(max=2), on_failure=ON_FAILURE)
        side.until_status("job", "failed")
        return side.fields("job"), side.results("job"), side.registries("job"), len(side.calls("job")), side.counters()

    fields, results, _, calls, counters = both.agree(scenario)
    assert fields["retries_left"] == "0"
    assert len(results) == 1
    assert calls == 3
    assert counters == (0, 3, True)


def test_a_retry_with_intervals_waits_in_the_scheduled_registry_each_time(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, retry=Retry(max=2, interval=[60, 120]))
        side.until_status("job", "scheduled")
        first = side.seen("job")
        side.finish_scheduled("job", "scheduled")
        side.until(lambda: side.fields("job")["retries_left"] == "0" and side.status("job") == "scheduled")
        second = side.seen("job")
        side.finish_scheduled("job", "failed")
        return first, second, side.seen("job"), side.counters()

    first, second, last, counters = both.agree(scenario)
    assert first["registries"] == {"scheduled:embedding": 60}
    assert second["registries"] == {"scheduled:embedding": 120}
    assert list(last["registries"]) == ["failed:embedding"]
    assert counters == (0, 3, True)


@pytest.mark.parametrize("at_front", [True, False])
def test_a_retry_joins_the_front_of_its_queue_if_it_says_so(both: Both, at_front: bool) -> None:
    def scenario(side: Side) -> list[str]:
        another = side.queue().create_job(EMBED, ({"input": "a"},), job_id=side.id("another"))
        another.save()
        retry, meta = Retry(max=1, enqueue_at_front=at_front), {"another": another.id}
        side.enqueue("job", ERROR, retry=retry, meta=meta, on_failure=SUSPENDS)
        side.until(lambda: side.connection.llen("rq:queue:embedding") == 2)
        order: Any = side.connection.lrange("rq:queue:embedding", 0, -1)
        resume(side.connection)
        side.until_status("another", "finished")
        side.until_status("job", "failed")
        return [job_id.decode().removeprefix(side.prefix) for job_id in order]

    assert both.agree(scenario) == (["job", "another"] if at_front else ["another", "job"])


def test_a_request_that_can_never_succeed_is_not_retried(both: Both) -> None:
    """Stock RQ tries again whatever was raised. Ours knows which errors are permanent, and spares the device."""
    for side in (both.stock, both.ours):
        side.queue().enqueue(EMBED, {"inputs": "a"}, job_id=side.id("job"), retry=Retry(max=2, interval=60))
    both.stock.until_status("job", "scheduled")
    both.ours.until_status("job", "failed")
    assert both.ours.reason("job").startswith("impetus_producer.errors.InvalidRequestError: inputs: there is no such")
    assert list(both.ours.registries("job")) == ["failed:embedding"]
    assert both.ours.counters() == (0, 1, True)


def test_a_failed_job_that_is_requeued_runs_again(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, failure_ttl=60, result_ttl=100)
        side.until_status("job", "failed")
        mended = zlib.compress(json.dumps([EMBED, None, [{"input": "a"}], {}]).encode())
        side.connection.hset(f"rq:job:{side.id('job')}", "data", mended)
        side.requeue("job")
        side.until_status("job", "finished")
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert [result[0] for result in seen["results"]] == ["SUCCESSFUL", "FAILED"]
    assert counters == (1, 1, True)


def test_a_timeout_fails_its_job_and_counts_as_a_failure_that_is_retried(both: Both) -> None:
    """The reasons are worded differently: RQ interrupts Python, ours the engine."""

    def scenario(side: Side) -> Any:
        side.enqueue("stuck", HANG, job_timeout=1, retry=Retry(max=1, interval=60))
        side.until_status("stuck", "scheduled")
        stuck = side.seen("stuck")
        side.enqueue("next")
        side.until_status("next", "finished")
        return stuck, side.seen("next"), side.counters()

    stuck, _, counters = both.agree(scenario)
    assert stuck["fields"]["timeout"] == "1"
    assert stuck["registries"] == {"scheduled:embedding": 60}
    assert counters == (1, 1, True)


# -- callbacks and webhooks ------------------------------------------------------------------------------------------


def test_a_success_callback_is_called_with_rqs_arguments(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", on_success=ON_SUCCESS, on_failure=ON_FAILURE)
        side.until_status("job", "finished")
        return side.seen("job"), side.counters()

    seen, _ = both.agree(scenario)
    assert seen["calls"] == ["success dict"]


def test_a_failure_callback_is_called_with_the_error_and_no_traceback(both: Both) -> None:
    """The traceback is None, as it is where RQ finds an abandoned job: the error arose in another process."""

    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, on_success=ON_SUCCESS, on_failure=ON_FAILURE)
        side.until_status("job", "failed")
        return side.seen("job"), side.counters()

    both.agree(scenario)
    assert both.stock.calls("job") == ["failure InferenceError InferenceError traceback"]
    assert both.ours.calls("job") == ["failure InferenceError InferenceError NoneType"]


def test_a_success_callback_that_raises_fails_its_job(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", on_success=RAISES, on_failure=ON_FAILURE)
        side.until_status("job", "failed")
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert seen["calls"] == ["raised dict", "failure ValueError ValueError NoneType"]
    assert seen["results"] == [("FAILED", None, "ValueError: a callback raised")]
    assert counters == (0, 1, True)


def test_a_failure_callback_that_raises_is_the_reason_that_is_kept(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, on_failure=RAISES)
        side.until_status("job", "failed")
        return side.seen("job"), side.counters()

    seen, _ = both.agree(scenario)
    assert seen["results"] == [("FAILED", None, "ValueError: a callback raised")]


def test_a_callback_that_is_not_on_the_list_fails_its_job_and_is_never_imported(both: Both) -> None:
    """Stock RQ runs whatever a job names. That is remote code execution for whoever can write to Redis."""
    for side in (both.stock, both.ours):
        side.enqueue("job", on_success=Callback("tests.worker.callbacks.note_success"))
    both.stock.until_status("job", "finished")
    both.ours.until_status("job", "failed")
    assert both.stock.connection.get("noted") == both.stock.id("job").encode()
    assert both.ours.connection.get("noted") is None
    assert both.ours.reason("job").endswith(
        "success_callback_name: this worker was not told to run 'tests.worker.callbacks.note_success': "
        "name it with --allow-callbacks"
    )


class Listener:
    """A web server on loopback that keeps what it is sent. Requests for /slow wait until `let_go` is set."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, Any] | None]] = []
        self.let_go = threading.Event()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any] | None) -> None:
                listener.requests.append((self.command, self.path, body))
                if self.path.startswith("/slow"):
                    listener.let_go.wait(10)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=partial(self._server.serve_forever, 0.05))
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def got(self, path: str) -> list[tuple[str, dict[str, Any] | None]]:
        return [(method, body) for method, where, body in list(self.requests) if where == path]

    def stop(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.stop()


def test_webhooks_are_sent_with_rqs_payload(both: Both, listener: Listener) -> None:
    def scenario(side: Side) -> Any:
        def hooks() -> list[Webhook]:
            return [
                Webhook(listener.url(f"/{type(side).__name__}/{status}/{method}"), status, method=method)
                for status in ("finished", "failed")
                for method in ("GET", "POST")
            ]

        side.enqueue("good", webhooks=hooks())
        side.enqueue("bad", ERROR, webhooks=hooks())
        side.until_status("good", "finished")
        side.until_status("bad", "failed")
        sent = {}
        for status in ("finished", "failed"):
            for method in ("GET", "POST"):
                path = f"/{type(side).__name__}/{status}/{method}"
                side.until(partial(listener.got, path))
                sent[status, method] = [
                    (how, body and {name: _shape(name, value) for name, value in body.items()})
                    for how, body in listener.got(path)
                ]
        return sent, {**side.seen("good"), "fields": None}, {**side.seen("bad"), "fields": None}, side.counters()

    sent, *_ = both.agree(scenario)
    assert sent["finished", "GET"] == [("GET", None)]
    ((_, body),) = sent["failed", "POST"]
    assert body["status"] == "failed"
    assert "InferenceError" in body["exc_info"]


def _shape(name: str, value: str) -> str:
    if name.endswith("_at"):
        return type(datetime.fromisoformat(value)).__name__
    return value.strip().splitlines()[-1]


def test_a_slow_receiver_of_webhooks_holds_up_no_job(both: Both, listener: Listener) -> None:
    """Stock RQ waits up to 10 s for each. Ours sends them from threads of their own."""
    side = both.ours
    side.enqueue("job", webhooks=[Webhook(listener.url("/slow"), "finished")])
    side.until(lambda: listener.got("/slow"))
    side.enqueue("next")
    side.until_status("next", "finished")
    assert side.status("job") == "finished"
    assert not listener.let_go.is_set()


# -- jobs that hang together -----------------------------------------------------------------------------------------


def test_a_dependent_runs_after_its_parent_and_leaves_what_rqs_own_leaves(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            parent = side.enqueue("parent")
            child = side.enqueue("child", depends_on=parent, on_success=ON_SUCCESS, result_ttl=100)
            waiting = side.seen("child")
            side.enqueue("grandchild", depends_on=child, on_success=ON_SUCCESS)
        side.until_status("grandchild", "finished")
        return waiting, [side.seen(label) for label in ("parent", "child", "grandchild")], side.counters()

    waiting, _, counters = both.agree(scenario)
    assert list(waiting["registries"]) == ["deferred:embedding"]
    assert counters == (3, 0, True)


def test_the_dependents_of_a_failed_job_wait_unless_they_allow_failure(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            parent = side.enqueue("parent", ERROR)
            bad = side.queue().enqueue(EMBED, {"inputs": 1}, job_id=side.id("invalid"))
            for label, job in (("parent", parent), ("invalid", bad)):
                side.enqueue(f"strict-{label}", depends_on=job)
                side.enqueue(
                    f"lenient-{label}", depends_on=Dependency(jobs=[job], allow_failure=True), on_success=ON_SUCCESS
                )
        for label in ("parent", "invalid"):
            side.until_status(f"lenient-{label}", "finished")
            assert side.status(label) == "failed"
        labels = ("parent", "strict-parent", "lenient-parent", "invalid", "strict-invalid", "lenient-invalid")
        return {label: side.seen(label) for label in labels}, side.counters()

    seen, _ = both.agree(scenario)
    assert list(seen["strict-parent"]["registries"]) == ["deferred:embedding"]


def test_a_dependent_of_two_waits_for_both_and_may_join_at_the_front(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            first, second = side.enqueue("first"), side.enqueue("second", retry=Retry(max=1))
            both_of_them = Dependency(jobs=[first, second], enqueue_at_front=True)
            side.enqueue("child", depends_on=both_of_them, on_success=ON_SUCCESS)
        side.until_status("child", "finished")
        late = side.enqueue("late", depends_on=[side.job("first"), side.job("second")], on_success=ON_SUCCESS)
        side.until_status("late", "finished")
        return [side.seen(label) for label in ("first", "second", "child")], len(late.dependency_ids)

    both.agree(scenario)


def test_a_dependent_of_a_stopped_or_cancelled_parent_never_runs(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            parent = side.enqueue("parent")
            side.enqueue("child", depends_on=parent)
            side.enqueue("wanted", depends_on=parent)
            parent.cancel()
        side.enqueue("next")
        side.until_status("next", "finished")
        return side.seen("parent"), side.seen("child")

    parent, child = both.agree(scenario)
    assert list(parent["registries"]) == ["canceled:embedding"]
    assert list(child["registries"]) == ["deferred:embedding"]


def test_a_group_knows_its_jobs_until_they_are_gone(both: Both) -> None:
    def scenario(side: Side) -> Any:
        group = Group.create(side.connection, side.id("group"))
        options: dict[str, dict[str, Any]] = {"good": {}, "bad": {}, "gone": {"result_ttl": 0}}
        group.enqueue_many(
            side.queue(),
            [
                Queue.prepare_data(
                    EMBED, ({"input": ERROR if label == "bad" else "a"},), job_id=side.id(label), **options[label]
                )
                for label in options
            ],
        )
        for label, status in (("good", "finished"), ("bad", "failed"), ("gone", None)):
            side.until_status(label, status)
        members = sorted(job.id.removeprefix(side.prefix) for job in group.get_jobs())
        return members, side.seen("good"), side.seen("bad"), side.seen("gone"), side.counters()

    members, *_ = both.agree(scenario)
    assert members == ["bad", "good"]


# -- when and in which order -----------------------------------------------------------------------------------------


def test_a_job_at_the_front_overtakes_those_that_wait(both: Both) -> None:
    def scenario(side: Side) -> list[str]:
        side.enqueue_together(
            *(partial(side.enqueue, label, on_success=ON_SUCCESS) for label in ("first", "second")),
            partial(side.enqueue, "hasty", on_success=ON_SUCCESS, at_front=True),
            partial(side.enqueue, "bulk", queue="embedding-bulk", on_success=ON_SUCCESS),
        )
        side.until(lambda: len(side.calls_in_order()) == 4)
        return side.calls_in_order()

    assert both.agree(scenario) == ["hasty", "first", "second", "bulk"]


def test_a_scheduled_job_waits_for_its_time(both: Both) -> None:
    def scenario(side: Side) -> Any:
        request = {"input": "a"}
        queue = side.queue()
        queue.enqueue_in(timedelta(seconds=60), EMBED, request, job_id=side.id("in"))
        queue.enqueue_at(datetime.now(UTC) + timedelta(seconds=90), EMBED, request, job_id=side.id("at"))
        queue.enqueue_in(timedelta(seconds=60), EMBED, request, job_id=side.id("cancelled")).cancel()
        side.enqueue("next")
        side.until_status("next", "finished")
        labels = ("in", "at", "cancelled")
        waiting = [side.seen(label) for label in labels]
        side.finish_scheduled("in", "finished")
        return waiting, [side.seen(label) for label in labels], side.counters()

    (waiting, at, cancelled), (done, *_), _ = both.agree(scenario)
    assert waiting["registries"] == {"scheduled:embedding": 60}
    assert at["registries"] == {"scheduled:embedding": 90}
    assert list(cancelled["registries"]) == ["canceled:embedding"]
    assert list(done["registries"]) == ["finished:embedding"]


def test_a_repeat_runs_again_at_once_or_after_its_interval(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("often", repeat=Repeat(times=2), on_success=ON_SUCCESS)
        side.until(lambda: len(side.calls("often")) == 3 and side.status("often") == "finished")
        side.enqueue("later", repeat=Repeat(times=1, interval=60))
        side.until_status("later", "scheduled")
        between = side.seen("later")
        side.finish_scheduled("later", "finished")
        return side.seen("often"), between, side.seen("later"), side.counters()

    often, between, later, counters = both.agree(scenario)
    assert [result[0] for result in often["results"]] == ["SUCCESSFUL"] * 3
    assert between["registries"].keys() == {"scheduled:embedding", "finished:embedding"}
    assert len(later["results"]) == 2
    assert counters == (5, 0, True)


def test_a_unique_job_is_refused_while_another_of_its_id_is_kept(both: Both) -> None:
    def scenario(side: Side) -> Any:
        refused = []

        def attempt() -> None:
            try:
                side.enqueue("job", unique=True, result_ttl=100)
                refused.append(False)
            except DuplicateJobError:
                refused.append(True)

        with side.held():
            attempt()
            attempt()
        side.until_status("job", "finished")
        attempt()
        seen = side.seen("job")
        side.job("job").delete()
        attempt()
        side.until_status("job", "finished")
        return refused, seen, side.seen("job")

    refused, *_ = both.agree(scenario)
    assert refused == [False, True, True, False]


def test_a_rate_limit_lets_the_next_job_in_whatever_became_of_the_last(both: Both) -> None:
    def scenario(side: Side) -> Any:
        limit = RateLimit(side.id("limit"), 1)
        with side.held():
            side.enqueue("good", rate_limit=limit, on_success=ON_SUCCESS)
            side.enqueue("bad", ERROR, rate_limit=limit, retry=Retry(max=1), on_failure=ON_FAILURE)
            side.queue().enqueue(EMBED, {"inputs": 1}, job_id=side.id("invalid"), rate_limit=limit)
            side.enqueue("discarded", rate_limit=limit, result_ttl=0, on_success=ON_SUCCESS)
            side.enqueue("last", rate_limit=limit, on_success=ON_SUCCESS)
            waiting = [side.status(label) for label in ("good", "bad", "invalid", "discarded", "last")]
        side.until_status("last", "finished")
        registry = RateLimitRegistry(side.id("limit"), side.connection)
        side.until(lambda: registry.get_allowed_job_count() == 0)
        seen = [side.seen(label) for label in ("good", "bad", "invalid", "discarded", "last")]
        return waiting, seen, registry.get_rate_limited_job_count(), side.calls_in_order(), side.counters()

    waiting, _, left, order, _ = both.agree(scenario)
    assert waiting == ["queued"] + ["rate_limited"] * 4
    assert left == 0
    assert order == ["good", "bad", "bad", "discarded", "last"]


# -- interfering -----------------------------------------------------------------------------------------------------


def test_a_job_cancelled_in_the_queue_does_not_run(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            side.enqueue("job", on_success=ON_SUCCESS).cancel()
            side.enqueue("next")
        side.until_status("next", "finished")
        return side.seen("job")

    seen = both.agree(scenario)
    assert seen["calls"] == []
    assert list(seen["registries"]) == ["canceled:embedding"]


def while_running(side: Side, label: str, meddle: Callable[[], object], **options: Any) -> None:
    """Runs a job, meddles once it has started, and waits for the worker to be done with it."""
    if isinstance(side, Ours):
        side.enqueue(label, **options)
        eventually(lambda: side.status(label) == "started")
        meddle()
        assert not side.is_idle(), "the job was over before the test could meddle"
        eventually(side.is_idle, limit_s=5)
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


def cancel(side: Side) -> None:
    side.job("job").cancel()


def delete(side: Side) -> None:
    side.job("job").delete()


def test_a_job_cancelled_while_it_runs_stays_cancelled(slow: Both) -> None:
    """Stock RQ finishes it all the same and leaves it in two registries. A job of ours has one ending."""
    for side in (slow.stock, slow.ours):
        while_running(side, "job", partial(cancel, side))
    assert slow.stock.status("job") == "finished"
    assert slow.stock.registries("job").keys() == {"canceled:embedding", "finished:embedding"}
    assert slow.ours.status("job") == "canceled"
    assert slow.ours.registries("job").keys() == {"canceled:embedding"}
    assert slow.ours.results("job") == []


def test_a_job_deleted_while_it_runs_stays_deleted(slow: Both) -> None:
    """Stock RQ writes it anew, with its result. Whoever deletes a job does not want it back."""
    for side in (slow.stock, slow.ours):
        while_running(side, "job", partial(delete, side))
    assert slow.stock.status("job") == "finished"
    assert slow.ours.status("job") is None
    assert slow.ours.registries("job") == {}


def test_meta_that_others_save_while_a_job_runs_is_kept(slow: Both) -> None:
    def scenario(side: Side) -> Any:
        def save_meta() -> None:
            job = side.job(label)
            job.meta["progress"] = 50
            job.save_meta()

        metas = []
        for label, options in (("short", {}), ("by-rq", {"on_success": ON_SUCCESS})):
            while_running(side, label, save_meta, meta={"who": "me"}, **options)
            metas.append(side.job(label).get_meta())
        return metas

    assert slow.agree(scenario) == [{"who": "me", "progress": 50}] * 2


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
        process.wait(timeout=10)


@pytest.mark.parametrize("by_execution", [False, True])
def test_a_stopped_job_is_stopped_and_its_callback_called(slow: Both, by_execution: bool) -> None:
    """Compared with RQ's forking worker: a `SimpleWorker` cannot stop a job."""

    def scenario(side: Side) -> Any:
        text = "a" if isinstance(side, Ours) else HANG
        parent = side.enqueue("job", text, retry=Retry(max=2), on_stopped=ON_STOPPED, on_failure=ON_FAILURE)
        side.enqueue("child", depends_on=parent)
        eventually(lambda: side.status("job") == "started")
        if by_execution:
            (execution,) = eventually(parent.get_executions)
            send_stop_execution_command(side.connection, parent.id, execution.id)
        else:
            send_stop_job_command(side.connection, parent.id, serializer=JSONSerializer)
        eventually(lambda: side.status("job") == "stopped")
        side.enqueue("next")
        eventually(lambda: side.status("next") == "finished")
        seen = side.seen("job")
        # RQ's two processes overwrite each other's times.
        for name in ("data", "description", "ended_at", "last_heartbeat", "worker_name"):
            del seen["fields"][name]
        return {**seen, "results": [result[0] for result in seen["results"]]}, side.seen("child")

    with stock_process(slow.stock.url, "rq.Worker"):
        seen, child = slow.agree(scenario)
    assert seen["calls"] == ["stopped"]
    assert list(seen["registries"]) == ["failed:embedding"]
    assert list(child["registries"]) == ["deferred:embedding"]


def test_a_stopped_callback_that_raises_changes_nothing(slow: Both) -> None:
    """As RQ's forking worker has it: the error is logged and the job is stopped."""
    side = slow.ours
    side.enqueue("job", on_stopped=RAISES)
    eventually(lambda: side.status("job") == "started")
    send_stop_job_command(side.connection, side.id("job"), serializer=JSONSerializer)
    side.until_status("job", "stopped")
    assert side.calls("job") == ["raised"]
    assert list(side.registries("job")) == ["failed:embedding"]


def test_suspended_workers_start_nothing_until_they_are_resumed(both: Both) -> None:
    def scenario(side: Side) -> Any:
        suspend(side.connection)
        side.enqueue("job")
        if isinstance(side, Ours):
            eventually(lambda: side.connection.hget(side.worker_key(), "state") == b"suspended")
        else:
            side.until(lambda: True)
        before = side.seen("job")
        resume(side.connection)
        side.until_status("job", "finished")
        return before, side.seen("job")

    before, _ = both.agree(scenario)
    assert before["position"] == 0


def begun(side: Side) -> bool:
    return bool(side.connection.zcard("rq:finished:embedding") >= 5)


def test_a_warm_shutdown_finishes_what_runs_and_leaves_the_rest_in_its_order(
    both: Both, redis_server: RedisServer, tmp_path: Path
) -> None:
    """How many jobs were begun differs, since ours looks ahead; what was not begun is as it was on both sides."""
    labels = [f"job{number}" for number in range(600)]
    with our_worker(redis_server, 7, tmp_path / "log", "--max-batch-texts", "1") as ours:
        for side in (both.stock, ours):
            side.prefix = both.stock.prefix
            side.enqueue_together(*(partial(side.enqueue, label, ttl=600) for label in labels))
            if side is ours:
                eventually(partial(begun, side))
                assert ours.running.stop() == 0
            else:
                with stock_process(side.url, "rq.SimpleWorker") as process:
                    eventually(partial(begun, side))
                assert process.returncode == 0
            statuses = [side.status(label) for label in labels]
            done = statuses.count("finished")
            assert 5 <= done < 600
            assert statuses == ["finished"] * done + ["queued"] * (600 - done)
            waiting: Any = side.connection.lrange("rq:queue:embedding", 0, -1)
            order = [job_id.decode().removeprefix(side.prefix) for job_id in waiting]
            # Stock RQ loses the job that it has popped and not begun when the signal comes: queued, and in no list.
            lost = 1 if side is both.stock and order == labels[done + 1 :] else 0
            assert order == labels[done + lost :]
            assert side.connection.zcard("rq:wip:embedding") == 0
            assert side.connection.smembers("rq:workers") == set()


@contextmanager
def burst(redis_server: RedisServer, log: Path) -> Iterator[Ours]:
    """An empty database; a worker of ours serves it until its queues are empty, when the block ends."""
    url = f"redis://{redis_server.host}:{redis_server.port}/8"
    side = Ours.__new__(Ours)
    Side.__init__(side, url)
    side.connection.flushdb()
    yield side
    options = ("--roles", "embedding", "--embedding-backend", "simulated", "--burst")
    allowed = ("--allow-callbacks", ",".join(CALLBACKS + name for name in ALLOWED))
    side.running = RunningWorker(url, log, *options, *allowed)
    try:
        assert side.running.process.wait(timeout=15) == 0, side.running.log
    finally:
        side.running.stop()


def test_a_dead_workers_job_runs_again_without_using_up_its_retry_or_calling_on_failure(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """RQ's cleanup of abandoned jobs does both, and fails a job that has no `Retry`."""
    with burst(redis_server, tmp_path / "log") as side:
        side.enqueue("job", retry=Retry(max=1), on_failure=ON_FAILURE, on_success=ON_SUCCESS)
        (claimed,) = Claims(side.connection, "dead", 20).claim(["embedding"], 1, 10**9).jobs
        side.connection.delete(f"rq:execution:{claimed.id}:{claimed.execution_id}")  # as time would
        assert side.status("job") == "started"
    assert side.status("job") == "finished"
    assert side.fields("job")["retries_left"] == "1"
    assert side.calls("job") == ["success dict"]
    assert list(side.registries("job")) == ["finished:embedding"]


# -- defects that this comparison found ------------------------------------------------------------------------------


def test_a_stopped_job_that_hangs_the_engine_holds_up_no_other(redis_server: RedisServer, tmp_path: Path) -> None:
    with our_worker(redis_server, 8, tmp_path / "log") as side:
        side.start_test("test-")
        side.enqueue("job", HANG)
        eventually(lambda: side.status("job") == "started")
        side.enqueue("timely", queue="embedding-bulk")  # what comes after it was in the engine when this was claimed
        eventually(lambda: side.status("timely") == "started")
        send_stop_job_command(side.connection, side.id("job"), serializer=JSONSerializer)
        side.until_status("job", "stopped")
        side.enqueue("next", job_timeout=8)
        side.until_status("next", "finished", "failed")
        assert side.status("next") == "finished"


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_job_with_callbacks_that_ends_while_it_runs_leaves_the_workers_books(slow: Both, end: str) -> None:
    side = slow.ours
    while_running(side, "job", lambda: getattr(side.job("job"), end)(), on_success=ON_SUCCESS)
    assert side.calls("job") == []
    executions: Any = side.connection.smembers(f"{side.worker_key()}:executions")
    assert [member for member in executions if member.decode().startswith(side.id("job"))] == []
    assert [name for name in side.keys("job") if "execution" in name] == []


def test_a_rate_limited_job_that_is_cancelled_while_it_runs_lets_the_next_in(slow: Both) -> None:
    def scenario(side: Side) -> Any:
        limit = RateLimit(side.id("limit"), 1)

        def meddle() -> None:
            side.enqueue("waiting", rate_limit=limit)
            side.job("job").cancel()

        while_running(side, "job", meddle, rate_limit=limit)
        side.until_status("waiting", "finished")
        return side.seen("waiting")

    slow.agree(scenario)


def test_a_dependent_without_callbacks_leaves_what_rqs_own_leaves(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            side.enqueue("child", depends_on=side.enqueue("parent"))
            side.enqueue("failing", ERROR, depends_on=side.job("parent"), failure_ttl=100)
        side.until_status("child", "finished")
        side.until_status("failing", "failed")
        return side.seen("child"), side.seen("failing")

    both.agree(scenario)


def test_a_result_that_is_kept_for_ever_outlives_the_reason_of_an_earlier_failure(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, failure_ttl=60, result_ttl=-1)
        side.until_status("job", "failed")
        mended = zlib.compress(json.dumps([EMBED, None, [{"input": "a"}], {}]).encode())
        side.connection.hset(f"rq:job:{side.id('job')}", "data", mended)
        side.job("job").requeue()
        side.until_status("job", "finished")
        return side.seen("job")

    assert both.agree(scenario)["keys"]["rq:results:job"] == "for ever"


def test_a_failure_callback_on_the_list_is_called_for_a_bad_request_too(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.queue().enqueue(EMBED, {"inputs": 1}, job_id=side.id("job"), on_failure=ON_FAILURE)
        side.until_status("job", "failed")
        return side.seen("job")

    assert both.agree(scenario)["calls"] == ["failure InvalidRequestError InvalidRequestError NoneType"]


def test_a_job_refused_for_its_callback_keeps_the_callbacks_name(both: Both) -> None:
    """So that it is not run without it when it is requeued at a worker that allows it."""
    side = both.ours
    name = "tests.worker.callbacks.note_failure"
    side.enqueue("job", on_failure=Callback(name), on_success=ON_SUCCESS)
    side.until_status("job", "failed")
    assert side.fields("job")["failure_callback_name"] == name
    assert side.fields("job")["success_callback_name"] == ON_SUCCESS.name


def test_a_job_that_was_put_back_keeps_its_ttl(redis_server: RedisServer, tmp_path: Path) -> None:
    with our_worker(redis_server, 8, tmp_path / "log", "--simulated-a-ms", "1000", "--max-batch-texts", "1") as side:
        side.start_test("test-")
        labels = [f"job{number}" for number in range(5)]
        side.enqueue_together(*(partial(side.enqueue, label, ttl=600) for label in labels))
        eventually(lambda: side.status("job4") == "started")
        side.running.stop()
        assert side.status("job4") == "queued"
        assert side.keys("job4") == {"rq:job:job4": 600}


def test_maintenance_frees_leaked_slots_and_forgets_empty_groups(
    both: Both, redis_server: RedisServer, tmp_path: Path
) -> None:
    def prepare(side: Side) -> None:
        with side.held():
            for label in ("gone", "waiting"):
                side.enqueue(label, rate_limit=RateLimit("limit", 1))
        side.connection.delete(f"rq:job:{side.id('gone')}")
        Group.create(side.connection, "group").enqueue_many(
            side.queue(), [Queue.prepare_data(EMBED, ({"input": "a"},), job_id=side.id("member"), result_ttl=0)]
        )
        side.connection.delete(f"rq:job:{side.id('member')}")
        side.connection.zadd("rq:finished:embedding", {"long-gone": 1})
        side.connection.hset(f"rq:job:{side.id('ready')}", mapping=_ready_job())
        side.connection.zadd("rq:ready:embedding", {side.id("ready"): 1})

    def seen(side: Side) -> Any:
        labels = ("gone", "waiting", "member", "ready")
        return {
            "statuses": {label: side.status(label) for label in labels},
            "groups": side.connection.smembers("rq:groups"),
            "slots": side.connection.zrange("rq:rl:limit:allowed", 0, -1),
            "long gone": side.connection.zscore("rq:finished:embedding", "long-gone"),
        }

    prepare(both.stock)
    both.stock.work()
    with burst(redis_server, tmp_path / "log") as ours:
        ours.prefix = both.stock.prefix
        prepare(ours)
    different = "\n".join(differences(seen(ours), seen(both.stock)))
    assert not different, different


def _ready_job() -> dict[Any, Any]:
    data = zlib.compress(json.dumps([EMBED, None, [{"input": "a"}], {}]).encode())
    return {"data": data, "status": "ready_to_enqueue", "origin": "embedding", "timeout": "180"}


def test_stock_rq_can_time_out_a_job_of_ours_of_many_texts(both: Both) -> None:
    """`jobs.embed` in stock RQ's process: the engine takes RQ's timeout for an error of the device, and goes on."""
    side = both.stock
    with stock_process(side.url, "rq.SimpleWorker") as process:
        try:
            side.enqueue("first")  # loads the engine: that, too, RQ may interrupt
            eventually(lambda: side.status("first") == "finished", limit_s=12)
            side.queue().enqueue(EMBED, {"input": [HANG, "b"]}, job_id=side.id("stuck"), job_timeout=1)
            eventually(lambda: side.status("stuck") == "failed", limit_s=12)
            assert "Timeout" in side.reason("stuck")
        finally:
            process.kill()


@pytest.mark.parametrize("registry", ["scheduled", "ready"])
def test_a_job_that_rq_cannot_read_holds_up_no_worker_and_no_other_job(
    redis_server: RedisServer, tmp_path: Path, registry: str
) -> None:
    with burst(redis_server, tmp_path / "log") as side:
        side.connection.hset(f"rq:job:{side.id('bad')}", mapping={**_ready_job(), "created_at": b"\xff"})
        side.connection.zadd(f"rq:{registry}:embedding", {side.id("bad"): 1, side.id("beside"): 1})
        side.connection.hset(f"rq:job:{side.id('beside')}", mapping=_ready_job())
        side.enqueue("good")
    assert side.status("good") == "finished"
    assert side.status("beside") == "finished", "an unreadable job keeps the others in its registry for ever"
    assert "starting it again" not in side.running.log
