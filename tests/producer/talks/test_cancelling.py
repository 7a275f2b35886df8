"""Cancelling: what it writes, what it says, and when."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rq import Queue
from rq.job import Job, JobStatus
from rq.rate_limit import RateLimit
from rq.results import Result
from rq.serializers import JSONSerializer

from impetus_producer import JobNotFoundError, Producer, ResultTimeoutError
from impetus_producer.cli.main import cli
from impetus_producer.talks.steps import Question
from tests.patience import eventually

from ..stock_worker import embedding_of, finish

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from impetus_producer import JobHandle

    from ..servers.valkey import Valkey

    MakeValkey = Callable[..., Valkey]


def job_of(producer: Producer, handle: JobHandle[Any] | str) -> Job:
    return Job.fetch(
        handle if isinstance(handle, str) else handle.job_id, producer.connection, serializer=JSONSerializer
    )


def start(producer: Producer, handle: JobHandle[Any], worker: str = "w1") -> None:
    producer.connection.lrem("rq:queue:embedding", 1, handle.job_id)
    producer.connection.hset(f"rq:job:{handle.job_id}", mapping={"status": "started", "worker_name": worker})


def stop(producer: Producer, handle: JobHandle[Any]) -> None:
    """As a worker ends a job that it was told to stop, in one step."""
    job = job_of(producer, handle)
    with producer.connection.pipeline() as pipeline:
        job.set_status(JobStatus.STOPPED, pipeline)
        Result.create_failure(job, 500, "stopped", pipeline=pipeline)
        pipeline.execute()


def everything(connection: Redis) -> dict[str, Any]:
    """What lies in Redis but the times."""
    seen: dict[str, Any] = {}
    keys: Any = connection.keys()
    for key in keys:
        kind: Any = connection.type(key)
        if kind == b"hash":
            seen[key.decode()] = {
                name: value
                for name, value in connection.hgetall(key).items()
                if name not in (b"created_at", b"enqueued_at", b"cancelled_by", b"data")
            }
        elif kind == b"zset":
            seen[key.decode()] = set(connection.zrange(key, 0, -1))
        elif kind == b"list":
            seen[key.decode()] = connection.lrange(key, 0, -1)
        elif kind == b"set":
            seen[key.decode()] = connection.smembers(key)
    return seen


def enqueue_all(connection: Redis) -> None:
    """One job of each kind that waits, and others that wait for them."""
    queue = Queue("embedding", connection=connection, serializer=JSONSerializer)
    options: dict[str, Any] = {"args": [{"input": "a"}]}
    first = queue.enqueue("jobs.embed", job_id="queued", **options)
    queue.enqueue("jobs.embed", job_id="deferred", depends_on=first, **options)
    queue.enqueue_at(datetime(2030, 1, 1), "jobs.embed", job_id="scheduled", **options)
    for name in ("limited", "held", "held-too"):
        queue.enqueue("jobs.embed", job_id=name, rate_limit=RateLimit("tenant", 1), **options)


@pytest.mark.parametrize("cancelled", ["queued", "deferred", "scheduled", "limited", "held"])
def test_a_job_that_waits_is_cancelled_as_rq_cancels_it(producer: Producer, cancelled: str) -> None:
    enqueue_all(producer.connection)
    job_of(producer, cancelled).cancel()
    expected = everything(producer.connection)
    producer.connection.flushall()
    enqueue_all(producer.connection)
    assert producer.handle(cancelled).cancel() is True
    assert everything(producer.connection) == expected
    assert producer.handle(cancelled).cancel() is False


def test_a_job_that_runs_is_told_by_a_wish_and_a_message_and_is_cancelled_once_it_stopped(producer: Producer) -> None:
    handle = producer.embed("a")
    start(producer, handle)
    with producer.connection.pubsub() as ears:  # type: ignore[no-untyped-call]
        ears.subscribe("rq:pubsub:w1")
        assert ears.get_message(timeout=60)
        answers: list[bool] = []
        thread = threading.Thread(target=lambda: answers.append(handle.cancel(timeout_s=60)))
        thread.start()
        message = eventually(lambda: ears.get_message(timeout=0.1))
        assert json.loads(message["data"]) == {"command": "stop-job", "job_id": handle.job_id}
        assert 0 < producer.connection.ttl(f"impetus:cancel:{handle.job_id}") <= 24 * 3600
        assert answers == []
        stop(producer, handle)
        thread.join(60)
    assert answers == [True]


def test_a_job_that_runs_on_is_not_said_to_be_cancelled_and_the_wish_stands(producer: Producer) -> None:
    handle = producer.embed("a")
    start(producer, handle)
    with pytest.raises(ResultTimeoutError, match="was told to stop and has not yet"):
        handle.cancel(timeout_s=0)
    assert producer.connection.exists(f"impetus:cancel:{handle.job_id}")
    stop(producer, handle)
    assert handle.cancel() is False
    handle.delete()
    assert producer.connection.keys("*:" + handle.job_id) == []


@pytest.mark.parametrize(("end", "expected"), [("finished", False), ("gone", False), ("queued", True)])
def test_a_job_that_ended_meanwhile_was_not_cancelled_and_one_put_back_is(
    producer: Producer, end: str, expected: bool
) -> None:
    handle = producer.embed("a")
    start(producer, handle)
    wish = f"impetus:cancel:{handle.job_id}"
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(handle.cancel(timeout_s=60)))
    thread.start()
    eventually(lambda: producer.connection.exists(wish))
    if end == "finished":
        finish(producer.connection, handle.job_id, embedding_of(["a"]))
    elif end == "gone":
        handle.delete()
    else:
        producer.connection.hset(f"rq:job:{handle.job_id}", "status", "queued")
        producer.connection.rpush("rq:queue:embedding", handle.job_id)
    thread.join(60)
    assert answers == [expected]
    assert producer.connection.llen("rq:queue:embedding") == 0


def test_the_wish_is_enough_where_publishing_is_denied(valkey: MakeValkey) -> None:
    server = valkey()
    server.ask("ACL", "SETUSER", "svc", "on", ">pw", "~rq:*", "~impetus:*", "resetchannels", "+@all")
    producer = Producer(server.url.replace("//", "//svc:pw@"))
    handle = producer.embed("a")
    start(producer, handle)
    with pytest.raises(ResultTimeoutError, match="was told to stop"):
        handle.cancel(timeout_s=0)
    assert producer.connection.exists(f"impetus:cancel:{handle.job_id}")


def test_what_may_not_be_deleted_is_left_to_its_time_to_live(valkey: MakeValkey) -> None:
    server = valkey()
    rights = ("~rq:*", "~impetus:awaited:*", "~impetus:cancel:*", "%R~impetus:*", "&rq:*", "+@all", "-@dangerous")
    server.ask("ACL", "SETUSER", "svc", "on", ">pw", *rights)
    producer = Producer(server.url.replace("//", "//svc:pw@"))
    handle = producer.generate("a", stream=True)
    server.ask("XADD", f"impetus:stream:{handle.job_id}", "*", "event", "start")
    handle.delete()
    assert server.ask("KEYS", f"*{handle.job_id}") == [f"impetus:stream:{handle.job_id}".encode()]


def test_a_cancellation_whose_answer_was_lost_is_still_one(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    put_to, lost = Question.put_to, iter([True])

    def forgetful(question: Question[Any], client: Redis) -> Any:
        answer = put_to(question, client)
        if next(lost, False):
            raise ConnectionResetError
        return answer

    handle = producer.embed("a")
    monkeypatch.setattr(Question, "put_to", forgetful)
    assert handle.cancel() is True


def test_a_job_that_is_not_there_cannot_be_cancelled(producer: Producer) -> None:
    handle = producer.embed("a")
    handle.delete()
    with pytest.raises(JobNotFoundError):
        handle.cancel()


def test_the_command_says_which_it_was(producer: Producer, redis_url: str) -> None:
    def cancel(job_id: str, *options: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["cancel", job_id, *options, "--redis-url", redis_url])
        return result.exit_code, result.output

    waits, runs, ended = (producer.embed("a") for _ in range(3))
    start(producer, runs)
    finish(producer.connection, ended.job_id, embedding_of(["a"]))
    assert cancel(waits.job_id) == (0, f"cancelled {waits.job_id}\n")
    assert cancel(ended.job_id) == (1, f"Error: job {ended.job_id} had ended before: it is finished\n")
    code, output = cancel(runs.job_id, "--timeout", "0")
    assert code == 1
    assert "was told to stop and has not yet" in output
