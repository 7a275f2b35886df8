"""Endings by RQ's means: what lies in Redis or in a callback fails its own job, and holds up no other."""

from __future__ import annotations

import json
import math
import queue
import threading
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import AuthenticationError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Callback, Queue, Retry
from rq.job import Dependency, Job, JobStatus
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer

from impetus_worker.allowed import Allowed
from impetus_worker.companions.link import Link, Reachability, client
from impetus_worker.errors import InvalidRequestError
from impetus_worker.inbox import EndedByRq
from impetus_worker.leases import rq_endings
from impetus_worker.leases.claims import ClaimedJob, Claims, recover
from impetus_worker.leases.outcomes import Failed, Finished
from impetus_worker.leases.rq_endings import RqEndings

from ..conftest import LIMIT_S
from .lossy import lossy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

pytestmark = pytest.mark.system
EMBED = "impetus_worker.jobs.embed"
MISSING = "tests.worker.whole.callbacks.raise_that_a_file_is_missing"


class Ender:
    def __init__(self, connection: Redis, url: str) -> None:
        self.connection = connection
        self.claims = Claims("w1", 20)
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        link = Link("rq-endings", lambda: client(url, 5.0), Reachability())
        self.endings = RqEndings(link, self.claims, "w1", Allowed(callbacks=(MISSING,)), self._told.put)
        self.endings.start()

    def claim(self, **options: Any) -> ClaimedJob:
        Queue("embedding", connection=self.connection, serializer=JSONSerializer).enqueue(
            EMBED, {"input": "a"}, **options
        )
        (job,) = self.claims.claim(["embedding"], 10, 10**9).run(self.connection).jobs
        return job

    def end(self, *outcomes: Finished | Failed) -> None:
        """Returns when they are over."""
        for outcome in outcomes:
            self.endings.put(outcome)
        over = [self._told.get(timeout=LIMIT_S) for _ in outcomes]
        assert over == [EndedByRq(outcome.job) for outcome in outcomes]

    def status(self, job: ClaimedJob) -> JobStatus:
        status = Job.fetch(job.id, connection=self.connection, serializer=JSONSerializer).get_status()
        assert status is not None
        return status

    def reason(self, job: ClaimedJob) -> str:
        result = Job.fetch(job.id, connection=self.connection, serializer=JSONSerializer).latest_result()
        assert result is not None
        return str(result.exc_string)


@pytest.fixture
def ender(connection: Redis, redis_url: str) -> Iterator[Ender]:
    ender = Ender(connection, redis_url)
    yield ender
    ender.endings.stop()
    assert ender.endings.join(LIMIT_S)


def test_an_ending_that_rq_cannot_write_for_what_lies_there_is_written_without_rq(ender: Ender) -> None:
    bad = ender.claim(retry=Retry(max=1))
    good = ender.claim(retry=Retry(max=1))
    ender.connection.set(f"rq:job:{bad.id}:dependents", "of another type")
    ender.connection.set(f"rq:results:{bad.id}", "of another type")
    ender.end(Finished(bad, json.dumps({"a": 1}).encode()), Finished(good, b"{}"))
    assert ender.status(good) is JobStatus.FINISHED
    assert ender.status(bad) is JobStatus.FINISHED
    assert ender.connection.hlen("impetus:tokens:embedding") == 0
    assert ender.connection.zcard("rq:wip:embedding") == 0


def test_a_callback_that_finds_no_file_or_no_host_fails_its_job_as_rq_has_it(ender: Ender) -> None:
    job = ender.claim(on_success=Callback(MISSING))
    ender.end(Finished(job, b"{}"))
    assert ender.status(job) is JobStatus.FAILED
    assert "no such file" in ender.reason(job)
    assert ender.connection.llen(f"calls:{job.id}") == 1


@pytest.mark.parametrize("kind", ["waits", "spins"])
def test_a_callback_that_hangs_fails_its_job_by_its_timeout_and_holds_up_no_other(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    over = threading.Event()

    def hangs(*arguments: Any) -> None:
        while kind == "spins" or not over.wait():
            pass

    hanging, next_one = ender.claim(on_success=Callback(MISSING, timeout=1)), ender.claim(retry=Retry(max=1))
    monkeypatch.setattr("tests.worker.whole.callbacks.raise_that_a_file_is_missing", hangs)
    ender.end(Finished(hanging, b"{}"), Finished(next_one, b"{}"))
    over.set()
    assert ender.status(hanging) is JobStatus.FAILED
    assert "JobTimeoutException" in ender.reason(hanging)
    assert ender.status(next_one) is JobStatus.FINISHED


class _OfItsOwn(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt(), _OfItsOwn("odd")])
def test_a_callback_that_ends_its_program_fails_its_job_and_holds_up_no_other(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def ends(*arguments: Any) -> None:
        raise error

    ending, next_one = ender.claim(on_success=Callback(MISSING)), ender.claim(retry=Retry(max=1))
    monkeypatch.setattr("tests.worker.whole.callbacks.raise_that_a_file_is_missing", ends)
    ender.end(Finished(ending, b"{}"), Finished(next_one, b"{}"))
    assert ender.status(ending) is JobStatus.FAILED
    assert f"the callback raised {type(error).__name__}" in ender.reason(ending)
    assert ender.status(next_one) is JobStatus.FINISHED


@pytest.mark.parametrize("error", [SystemExit(7), _OfItsOwn("odd"), RedisConnectionError("Connection refused."), None])
def test_a_callback_whose_module_does_not_load_or_hangs_fails_its_job_and_holds_up_no_other(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    over = threading.Event()
    loads: list[str] = []

    def load(name: str) -> None:
        """Stands for what a module does when it is imported."""
        loads.append(name)
        if error is not None:
            raise error
        over.wait()

    monkeypatch.delattr(MISSING)
    monkeypatch.setattr(f"{MISSING.rpartition('.')[0]}.__getattr__", load, raising=False)
    job, next_one = ender.claim(on_success=Callback(MISSING, timeout=1)), ender.claim(retry=Retry(max=1))
    ender.end(Finished(job, b"{}"), Finished(next_one, b"{}"))
    over.set()
    assert ender.status(job) is JobStatus.FAILED
    assert (type(error).__name__ if error else "JobTimeoutException") in ender.reason(job)
    assert ender.status(next_one) is JobStatus.FINISHED
    assert len(loads) == 1


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("Connection refused."),
        AuthenticationError("invalid username-password pair"),
        ReadOnlyError("You can't write against a read only replica."),
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_callback_that_has_trouble_with_a_server_of_its_own_fails_its_job_as_rq_has_it(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    called: list[Any] = []

    def raises(*arguments: Any) -> None:
        called.append(arguments)
        raise error

    monkeypatch.setattr("tests.worker.whole.callbacks.raise_that_a_file_is_missing", raises)
    job, next_one = ender.claim(on_success=Callback(MISSING)), ender.claim(retry=Retry(max=1))
    ender.end(Finished(job, b"{}"), Finished(next_one, b"{}"))
    assert ender.status(job) is JobStatus.FAILED
    assert f"the callback raised {type(error).__name__}" in ender.reason(job)
    assert ender.status(next_one) is JobStatus.FINISHED
    assert len(called) == 1


@pytest.mark.parametrize("piped", [False, True])
def test_a_callback_that_the_workers_server_fails_for_a_while_runs_until_it_does_not(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, piped: bool
) -> None:
    called: list[Any] = []

    def asks(job: Job, connection: Redis, *arguments: Any) -> None:
        called.append(job)
        with monkeypatch.context() as away:
            if len(called) < 4:
                away.setattr(type(connection.connection_pool), "get_connection", refused)
            if piped:
                with connection.pipeline() as pipeline:
                    pipeline.set("asked", 1)
                    pipeline.execute()
            else:
                connection.set("asked", 1)

    def refused(*arguments: Any) -> None:
        raise RedisConnectionError("Connection refused.")

    monkeypatch.setattr("tests.worker.whole.callbacks.raise_that_a_file_is_missing", asks)
    job = ender.claim(on_success=Callback(MISSING))
    ender.end(Finished(job, b"{}"))
    assert ender.status(job) is JobStatus.FINISHED
    assert len(called) == 4


@pytest.mark.parametrize("command", [("FLY",), ("LPUSH", "rq:queues", "x")], ids=lambda command: command[0])
def test_a_callback_that_asks_the_workers_server_for_what_it_cannot_do_fails_its_job(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    def asks(job: Job, connection: Redis, *arguments: Any) -> None:
        execute: Any = connection.execute_command
        execute(*command)

    monkeypatch.setattr("tests.worker.whole.callbacks.raise_that_a_file_is_missing", asks)
    job = ender.claim(on_success=Callback(MISSING))
    ender.end(Finished(job, b"{}"))
    assert ender.status(job) is JobStatus.FAILED


@pytest.fixture
def waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impetus_worker.leases.rq_endings.FIRST_WAIT_S", 0.0)
    monkeypatch.setattr("impetus_worker.companions.link.FIRST_WAIT_S", 0.001)
    monkeypatch.setattr("impetus_worker.companions.link.MAX_WAIT_S", 0.001)


def raising(error: Exception, times: float) -> tuple[Callable[..., None], list[Any]]:
    """In place of RQ's own ending: fails so often."""
    tries: list[Any] = []
    genuine = rq_endings._FencedWorker._finalize_success

    def end(*arguments: Any) -> None:
        tries.append(arguments)
        if len(tries) <= times:
            raise error
        genuine(*arguments)

    return end, tries


@pytest.mark.usefixtures("waits_for_nothing")
def test_an_ending_that_fails_again_and_again_though_the_server_answers_is_given_up(
    ender: Ender, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, tries = raising(RedisConnectionError("Connection closed by server."), math.inf)
    monkeypatch.setattr(rq_endings._FencedWorker, "_finalize_success", never)
    job = ender.claim(retry=Retry(max=1))
    ender.end(Finished(job, b"{}"))
    assert ender.status(job) is JobStatus.FAILED
    assert len(tries) == 10


@pytest.mark.usefixtures("waits_for_nothing")
def test_a_server_that_refuses_endings_for_a_state_of_its_own_is_waited_for_however_long(
    ender: Ender, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, _ = raising(OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), 30)
    monkeypatch.setattr(rq_endings._FencedWorker, "_finalize_success", late)
    job = ender.claim(retry=Retry(max=1))
    ender.end(Finished(job, b"{}"))
    assert ender.status(job) is JobStatus.FINISHED


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_that_another_claims_while_rq_is_about_to_write_its_ending_is_the_others(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    job = ender.claim(retry=Retry(max=1))
    asked = count(1)

    def holds_and_is_lost_then(fence: rq_endings._Fence) -> None:
        assert fence.holds()
        if next(asked) == 2:  # the first time is before RQ asks what it must write
            ender.connection.zadd("impetus:leases:embedding", {job.id: 1})
            assert recover("embedding", 1.0).run(ender.connection) == [job.id]
            assert len(Claims("w2", 20).claim(["embedding"], 1, 10**9).run(ender.connection).jobs) == 1

    monkeypatch.setattr(rq_endings._Fence, "assert_held", holds_and_is_lost_then)
    ender.end(Failed(job, ValueError("bad")) if fails else Finished(job, b"{}"))
    assert next(asked) >= 3
    assert ender.status(job) is JobStatus.STARTED
    assert ender.connection.xlen(f"rq:results:{job.id}") == 0
    assert str(ender.connection.hget("impetus:tokens:embedding", job.id)).endswith(" w2'")


def test_a_job_that_only_its_enqueuer_touches_while_rq_writes_its_ending_is_ended(
    ender: Ender, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [ender.claim(retry=Retry(max=1)), ender.claim(retry=Retry(max=1))]
    asked = count(1)

    def holds_and_is_saved_then(fence: rq_endings._Fence) -> None:
        assert fence.holds()
        if next(asked) == 2:
            ender.connection.hset(fence.key, mapping={"meta": "{}", "status": "queued"})

    monkeypatch.setattr(rq_endings._Fence, "assert_held", holds_and_is_saved_then)
    ender.end(Finished(jobs[0], b"{}"))
    asked = count(1)
    ender.end(Failed(jobs[1], InvalidRequestError("bad")))
    assert [ender.status(job) for job in jobs] == [JobStatus.FINISHED, JobStatus.FAILED]
    assert ender.connection.hlen("impetus:tokens:embedding") == 0


@pytest.mark.parametrize("fails", [False, True])
def test_what_waits_for_a_job_runs_though_the_answer_that_its_ending_is_written_was_lost(
    ender: Ender, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    monkeypatch.setattr("impetus_worker.companions.link.FIRST_WAIT_S", 0.001)
    job = ender.claim(rate_limit=RateLimit("one at a time", 1))
    queue = Queue("embedding", connection=ender.connection, serializer=JSONSerializer)
    waiting = [
        queue.enqueue(EMBED, {}, depends_on=Dependency([job.id], allow_failure=True)),
        queue.enqueue(EMBED, {}, rate_limit=RateLimit("one at a time", 1)),
    ]
    ender.endings._link.connection, lose = lossy(redis_url, retries=0)
    is_held, asked = rq_endings._Fence.assert_held, count(1)

    def is_held_and_the_answer_is_lost_then(fence: rq_endings._Fence) -> None:
        is_held(fence)
        if next(asked) == 2:
            lose.append("EXEC")

    monkeypatch.setattr(rq_endings._Fence, "assert_held", is_held_and_the_answer_is_lost_then)
    with closing(ender.endings._link):
        ender.end(Failed(job, InvalidRequestError("bad")) if fails else Finished(job, b"{}"))
    assert lose == []
    assert ender.status(job) is (JobStatus.FAILED if fails else JobStatus.FINISHED)
    assert ender.connection.xlen(f"rq:results:{job.id}") == 1
    assert [each.get_status() for each in waiting] == [JobStatus.QUEUED] * 2
    assert "not written" not in caplog.text


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_job_that_is_cancelled_or_deleted_while_its_callback_runs_gives_its_slot_back(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    job = ender.claim(rate_limit=RateLimit("one at a time", 1), on_success=Callback(MISSING))
    queue = Queue("embedding", connection=ender.connection, serializer=JSONSerializer)
    waiting = queue.enqueue(EMBED, {}, rate_limit=RateLimit("one at a time", 1))
    callback = "tests.worker.whole.callbacks.raise_that_a_file_is_missing"
    monkeypatch.setattr(callback, lambda job, connection, result: getattr(job, end)())
    ender.end(Finished(job, b"{}"))
    assert ender.connection.hget(f"rq:job:{job.id}", "status") == (b"canceled" if end == "cancel" else None)
    assert waiting.get_status() is JobStatus.QUEUED


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_that_somebody_writes_all_the_time_ends_all_the_same(
    ender: Ender, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    job = ender.claim(retry=Retry(max=1))
    is_held = rq_endings._Fence.assert_held

    def is_held_and_written_then(fence: rq_endings._Fence) -> None:
        is_held(fence)
        ender.connection.hset(fence.key, "meta", "{}")

    monkeypatch.setattr(rq_endings._Fence, "assert_held", is_held_and_written_then)
    ender.end(Failed(job, InvalidRequestError("bad")) if fails else Finished(job, b"{}"))
    assert ender.status(job) is (JobStatus.FAILED if fails else JobStatus.FINISHED)
    assert ender.connection.hlen("impetus:tokens:embedding") == 0


def test_a_dependent_that_comes_while_rq_writes_the_ending_runs(ender: Ender, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ender.claim(retry=Retry(max=1))
    queue = Queue("embedding", connection=ender.connection, serializer=JSONSerializer)
    is_held, dependents = rq_endings._Fence.assert_held, list[Job]()

    def is_held_and_another_depends_on_it_then(fence: rq_endings._Fence) -> None:
        is_held(fence)
        if fence._asked == 2:  # the first time is before RQ asks what it must write
            dependents.append(queue.enqueue(EMBED, {}, depends_on=job.id))

    monkeypatch.setattr(rq_endings._Fence, "assert_held", is_held_and_another_depends_on_it_then)
    ender.end(Finished(job, b"{}"))
    assert [each.get_status() for each in dependents] == [JobStatus.QUEUED]
