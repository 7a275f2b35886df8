"""What we write is what RQ writes, read back by RQ itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rq import Queue
from rq.job import Job
from rq.registry import FinishedJobRegistry
from rq.serializers import JSONSerializer

from impetus_producer.enqueueing import jobs
from impetus_producer.streams import stream_key
from impetus_producer.talks.steps import directly

from ..stock_worker import embedding_of, finish

if TYPE_CHECKING:
    from redis import Redis

FUNCTION = "impetus_worker.jobs.embed"
OPTIONS = jobs.JobOptions(timeout_s=123, result_ttl_s=456, failure_ttl_s=789)


def _fields(job: Job) -> dict[str, Any]:
    return {
        "func_name": job.func_name,
        "args": list(job.args),
        "kwargs": job.kwargs,
        "instance": job.instance,
        "timeout": job.timeout,
        "result_ttl": job.result_ttl,
        "failure_ttl": job.failure_ttl,
        "ttl": job.ttl,
        "status": job.get_status(),
        "origin": job.origin,
        "meta": job.meta,
        "retries_left": job.retries_left,
        "number_of_retries": job.number_of_retries,
        "dependency_ids": job.dependency_ids,
        "success_callback": job.success_callback,
        "failure_callback": job.failure_callback,
        "stopped_callback": job.stopped_callback,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "worker_name": job.worker_name or None,
        "group_id": job.group_id or None,
        "rate_limit_key": job.rate_limit_key or None,
        "webhooks": job.webhooks,
    }


@pytest.mark.parametrize("text", ["short", "long enough to be deflated. " * 200, "日本語 🙂 \u0000"])
def test_a_job_of_ours_reads_like_one_that_plain_rq_enqueued(connection: Redis, text: str) -> None:
    payload = {"input": [text], "model": "m"}
    queue = Queue("embedding", connection=connection, serializer=JSONSerializer)
    theirs = queue.enqueue(FUNCTION, payload, job_timeout=123, result_ttl=456, failure_ttl=789)
    ours_id = jobs.new_id()
    length = jobs.enqueueing("embedding", FUNCTION, {ours_id: payload}, OPTIONS).put_to(connection)

    ours = Job.fetch(ours_id, connection, serializer=JSONSerializer)
    assert _fields(ours) == _fields(Job.fetch(theirs.id, connection, serializer=JSONSerializer))
    assert length == 2
    assert queue.job_ids == [theirs.id, ours_id]
    for job in (theirs, ours):
        assert job.created_at is not None
        assert job.enqueued_at is not None
    assert ours.created_at >= theirs.created_at


def test_many_jobs_are_enqueued_in_order_and_the_queue_is_known_to_rq(connection: Redis) -> None:
    payloads = {jobs.new_id(): {"input": str(n)} for n in range(50)}
    length = jobs.enqueueing("embedding", FUNCTION, payloads, OPTIONS).put_to(connection)
    ids = list(payloads)
    assert length == 50
    assert Queue("embedding", connection=connection, serializer=JSONSerializer).job_ids == ids
    assert [queue.name for queue in Queue.all(connection)] == ["embedding"]


def test_discarding_ended_jobs_leaves_nothing_of_them(connection: Redis) -> None:
    ids = [jobs.new_id(), jobs.new_id()]
    jobs.enqueueing("embedding", FUNCTION, {job_id: {"input": "a"} for job_id in ids}, OPTIONS).put_to(connection)
    connection.delete("rq:queue:embedding")
    for job_id in ids:
        finish(connection, job_id, embedding_of(["a"]))
        connection.set(jobs.awaited_key(job_id), 1)
        connection.xadd(stream_key(job_id), {"event": "end"})
    directly(connection, jobs.discarding(ids))
    assert FinishedJobRegistry("embedding", connection).get_job_count(cleanup=False) == 0
    assert connection.keys() == [b"rq:queues"]


def test_the_sentence_of_a_failure_is_the_last_line_of_its_traceback() -> None:
    error = jobs.failure_from("1", "Traceback:\n ...\nimpetus_worker.errors.RequestError: input: too: long\n")
    assert (str(error), error.reason) == ("input: too: long", "RequestError")
    assert str(jobs.failure_from("1", "Work-horse terminated unexpectedly: signal 9")).startswith("Work-horse")
    assert "no reason" in str(jobs.failure_from("1", ""))
