"""How runs end by our scripts, held against what RQ itself reads and writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rq import Queue
from rq.job import Dependency, Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

from impetus_producer.contract import VECTORS_FIELD
from impetus_worker.leases.claims import Answer, Ending, Verb

from .hold import Hold, claim_one, enqueue, fetch

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.system


def test_a_finished_job_reads_as_rqs_own_does(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection, result_ttl=100)
    result = {"answer": [1, 2]}
    assert claims.finish([Ending(job, Verb.FINISH, json.dumps(result).encode(), 100)]) == [Answer.DONE]
    read = fetch(job, connection)
    assert read.get_status() == JobStatus.FINISHED
    assert read.return_value() == result
    assert read.ended_at is not None
    latest = read.latest_result()
    assert latest is not None
    assert latest.type is Result.Type.SUCCESSFUL
    assert latest.worker_name == "w1"
    assert latest.execution_id == job.token
    assert latest.execution_started_at is not None
    assert latest.execution_started_at <= datetime.now(UTC)
    assert job.id in FinishedJobRegistry("embedding", connection=connection)
    assert 0 < connection.ttl(f"rq:job:{job.id}") <= 100
    assert 0 < connection.ttl(f"rq:results:{job.id}") <= 100


@pytest.mark.parametrize("status", [status for status in JobStatus if status is not JobStatus.CANCELED])
def test_a_job_that_somebody_saved_as_it_was_before_is_claimed_and_ends_all_the_same(
    claims: Hold, connection: Redis, status: JobStatus
) -> None:
    (queued,) = enqueue(connection)
    connection.hset(f"rq:job:{queued.id}", "status", status)  # as `Job.save()` of whoever enqueued it does
    (job,) = claims.claim(["embedding"], 1).jobs
    connection.hset(f"rq:job:{job.id}", "status", status)
    assert claims.holds(job)
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Answer.DONE]
    assert fetch(job, connection).get_status() == JobStatus.FINISHED


@pytest.mark.parametrize("at_front", [False, True])
def test_a_job_that_was_enqueued_again_while_it_ran_runs_again(claims: Hold, connection: Redis, at_front: bool) -> None:
    job = claim_one(claims, connection)
    enqueue(connection, 3)
    Queue("embedding", connection=connection, serializer=JSONSerializer).enqueue_job(
        fetch(job, connection), at_front=at_front
    )
    assert not claims.holds(job)
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Answer.NOT_OURS]
    assert job.id in [each.id for each in claims.claim(["embedding"], 9).jobs]


@pytest.mark.parametrize("at_front", [False, True])
def test_a_job_that_was_enqueued_again_is_found_at_either_end_of_a_long_queue(
    claims: Hold, connection: Redis, at_front: bool
) -> None:
    job = claim_one(claims, connection)
    connection.rpush("rq:queue:embedding", *range(10_000))
    queue = Queue("embedding", connection=connection, serializer=JSONSerializer)
    queue.enqueue_job(fetch(job, connection), at_front=at_front)
    assert not claims.holds(job)


@pytest.mark.parametrize("verb", [Verb.FINISH, Verb.FAIL, Verb.STOP])
def test_a_job_that_has_ended_and_is_on_its_queue_once_more_is_passed_over(
    claims: Hold, connection: Redis, verb: Verb
) -> None:
    job = claim_one(claims, connection)
    claims.finish([Ending(job, verb, b"1", 100)])
    connection.rpush("rq:queue:embedding", job.id)
    assert claims.claim(["embedding"], 1).jobs == []


@pytest.mark.parametrize("verb", [Verb.FINISH, Verb.FAIL])
def test_a_job_that_runs_again_is_not_at_its_earlier_ending(claims: Hold, connection: Redis, verb: Verb) -> None:
    job = claim_one(claims, connection)
    claims.finish([Ending(job, verb, b"1", 100)])
    ended = fetch(job, connection)
    Queue("embedding", connection=connection, serializer=JSONSerializer).enqueue_job(fetch(job, connection))
    (again,) = claims.claim(["embedding"], 1).jobs
    ended.save()
    assert claims.finish([Ending(again, Verb.FINISH, b"2", 100)]) == [Answer.DONE]
    assert fetch(job, connection).return_value() == 2
    assert job.id not in FailedJobRegistry("embedding", connection=connection)


def test_vectors_lie_beside_the_result_where_they_are_given(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 3)
    jobs = claims.claim(["embedding"], 3).jobs
    blocks = [b"\x00\xff", None, b""]
    claims.finish([Ending(job, Verb.FINISH, b"1", 100, block) for job, block in zip(jobs, blocks, strict=True)])
    for job, block in zip(jobs, blocks, strict=True):
        stream: Any = connection.xrange(f"rq:results:{job.id}")
        ((_, entry),) = stream
        assert entry.get(VECTORS_FIELD.encode()) == block
        assert fetch(job, connection).return_value() == 1


def test_a_failed_job_reads_as_rqs_own_does(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    assert claims.finish([Ending(job, Verb.FAIL, b"errors.Broken: it broke", 50)]) == [Answer.DONE]
    read = fetch(job, connection)
    assert read.get_status() == JobStatus.FAILED
    latest = read.latest_result()
    assert latest is not None
    assert latest.exc_string == "errors.Broken: it broke"
    assert job.id in FailedJobRegistry("embedding", connection=connection)
    requeued = FailedJobRegistry("embedding", connection=connection, serializer=JSONSerializer).requeue(job.id)
    assert requeued.get_status() == JobStatus.QUEUED


def test_an_ended_job_leaves_nothing_of_its_run_behind(claims: Hold, connection: Redis) -> None:
    for verb in (Verb.FINISH, Verb.FAIL, Verb.ABORT, Verb.RETURN, Verb.STOP):
        job = claim_one(claims, connection)
        claims.finish([Ending(job, verb, b"null", 100)])
        connection.delete("rq:queue:embedding")
    assert connection.keys("rq:execution*") == []
    assert connection.keys("impetus:*") == []
    assert connection.keys("rq:wip:*") == []
    assert connection.keys("rq:worker:w1:executions") == []
    assert connection.hget("rq:worker:w1", "state") == b"idle"
    assert connection.hget("rq:worker:w1", "successful_job_count") == b"1"
    assert connection.hget("rq:worker:w1", "failed_job_count") == b"3"


def test_returned_jobs_are_at_the_front_again_in_their_order(claims: Hold, connection: Redis) -> None:
    jobs = enqueue(connection, 4)
    claimed = claims.claim(["embedding"], 3).jobs
    claims.finish([Ending(job, Verb.RETURN) for job in reversed(claimed)])
    assert connection.lrange("rq:queue:embedding", 0, -1) == [job.id.encode() for job in jobs]
    assert {fetch(job, connection).get_status() for job in jobs} == {JobStatus.QUEUED}


def test_a_late_finish_is_written_as_long_as_nobody_has_put_the_job_back(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    claims.let_lapse(job)
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Answer.DONE]
    assert fetch(job, connection).return_value() == 1
    assert claims.recover() == []


def test_a_run_whose_job_was_put_back_writes_nothing(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    claims.let_lapse(job)
    assert claims.recover() == [job.id]
    for verb in Verb:
        assert claims.finish([Ending(job, verb, b"1", 100)]) == [Answer.NOT_OURS]
    assert not claims.holds(job)
    assert fetch(job, connection).get_status() == JobStatus.QUEUED
    assert connection.lrange("rq:queue:embedding", 0, -1) == [job.id.encode()]
    again = claims.claim(["embedding"], 1).jobs[0]
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Answer.NOT_OURS]
    assert claims.finish([Ending(again, Verb.FINISH, b"2", 100)]) == [Answer.DONE]
    assert fetch(job, connection).return_value() == 2


def test_what_an_old_run_sends_does_not_shift_what_the_others_get(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 4)
    old, returned, failed, good = claims.claim(["embedding"], 4).jobs
    claims.let_lapse(old)
    assert claims.recover() == [old.id]
    endings = [
        Ending(old, Verb.FINISH, b'"old"', 100, b"OLD"),
        Ending(returned, Verb.RETURN),
        Ending(failed, Verb.FAIL, b"errors.Broken: it broke", 100),
        Ending(good, Verb.FINISH, b'"good"', 100, b"GOOD"),
    ]
    assert claims.finish(endings) == [Answer.NOT_OURS, Answer.DONE, Answer.DONE, Answer.DONE]
    assert fetch(good, connection).return_value() == "good"
    stream: Any = connection.xrange(f"rq:results:{good.id}")
    assert stream[0][1][VECTORS_FIELD.encode()] == b"GOOD"
    reason = fetch(failed, connection).latest_result()
    assert reason is not None
    assert reason.exc_string == "errors.Broken: it broke"
    assert connection.lrange("rq:queue:embedding", 0, -1) == [returned.id.encode(), old.id.encode()]


def test_large_batches_end_whole(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 1203)
    jobs = [*claims.claim(["embedding"], 700).jobs, *claims.claim(["embedding"], 700).jobs]
    assert len(jobs) == 1203
    assert set(claims.finish([Ending(job, Verb.FINISH, b"1", 100) for job in jobs])) == {Answer.DONE}
    assert connection.zcard("rq:finished:embedding") == 1203
    assert connection.hget("rq:worker:w1", "successful_job_count") == b"1203"
    assert connection.keys("impetus:*") == [b"impetus:recovery:embedding"] or connection.keys("impetus:*") == []
    assert connection.keys("rq:wip*") == []


def dependents_of(parent: Job, connection: Redis, count: int, queue: str = "embedding", **options: Any) -> list[Job]:
    return enqueue(connection, count, queue=queue, depends_on=parent, **options)


def test_dependents_are_enqueued_with_their_jobs_ending_each_on_its_own_queue(claims: Hold, connection: Redis) -> None:
    parent = enqueue(connection)[0]
    (here,), (there,) = dependents_of(parent, connection, 1), dependents_of(parent, connection, 1, queue="elsewhere")
    job = claims.claim(["embedding"], 1).jobs[0]
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Answer.DONE]
    for dependent, queue in ((here, "embedding"), (there, "elsewhere")):
        assert fetch(dependent, connection).get_status() == JobStatus.QUEUED
        assert connection.lrange(f"rq:queue:{queue}", 0, -1) == [dependent.id.encode()]
        assert connection.zcard(f"rq:deferred:{queue}") == 0
        assert b"rq:queue:elsewhere" in connection.smembers("rq:queues")
    assert not connection.exists(f"rq:job:{parent.id}:dependents")


def test_a_dependent_goes_on_though_its_registry_was_evicted(claims: Hold, connection: Redis) -> None:
    parent = enqueue(connection)[0]
    (dependent,) = dependents_of(parent, connection, 1)
    connection.delete("rq:deferred:embedding")
    claims.finish([Ending(claims.claim(["embedding"], 1).jobs[0], Verb.FINISH, b"1", 100)])
    assert connection.lrange("rq:queue:embedding", 0, -1) == [dependent.id.encode()]


def test_a_dependent_of_two_waits_for_both_also_when_both_end_together(claims: Hold, connection: Redis) -> None:
    first, second, third = enqueue(connection, 3)
    (both,) = enqueue(connection, 1, depends_on=[first, second])
    (all_three,) = enqueue(connection, 1, depends_on=[first, second, third])
    jobs = claims.claim(["embedding"], 3).jobs
    claims.finish([Ending(job, Verb.FINISH, b"1", 100) for job in jobs[:2]])
    assert fetch(both, connection).get_status() == JobStatus.QUEUED
    assert fetch(all_three, connection).get_status() == JobStatus.DEFERRED
    claims.finish([Ending(jobs[2], Verb.FINISH, b"1", 100)])
    assert fetch(all_three, connection).get_status() == JobStatus.QUEUED


def test_a_failed_job_lets_go_of_those_dependents_alone_that_allow_it(claims: Hold, connection: Redis) -> None:
    parent = enqueue(connection)[0]
    dependency = Dependency([parent], allow_failure=True, enqueue_at_front=True)
    (strict,), (lenient,) = dependents_of(parent, connection, 1), enqueue(connection, 1, depends_on=dependency)
    waiting = enqueue(connection)[0]
    job = claims.claim(["embedding"], 1).jobs[0]
    claims.finish([Ending(job, Verb.FAIL, b"x", 100)])
    assert fetch(strict, connection).get_status() == JobStatus.DEFERRED
    assert connection.lrange("rq:queue:embedding", 0, -1) == [lenient.id.encode(), waiting.id.encode()]
    assert connection.smembers(f"rq:job:{parent.id}:dependents") == {strict.id.encode()}


def test_a_stopped_job_lets_go_of_no_dependent(claims: Hold, connection: Redis) -> None:
    parent = enqueue(connection)[0]
    (dependent,) = dependents_of(parent, connection, 1)
    job = claims.claim(["embedding"], 1).jobs[0]
    assert claims.finish([Ending(job, Verb.STOP, b"stopped by its user", 100)]) == [Answer.DONE]
    assert fetch(job, connection).get_status() == JobStatus.STOPPED
    assert fetch(dependent, connection).get_status() == JobStatus.DEFERRED


def test_dependents_that_only_rq_can_see_to_are_left_to_it_unless_the_job_must_end(
    claims: Hold, connection: Redis
) -> None:
    parent = enqueue(connection)[0]
    limited = dependents_of(parent, connection, 1)[0]
    connection.hset(f"rq:job:{limited.id}", "rate_limit_key", "some limit")
    job = claims.claim(["embedding"], 1).jobs[0]
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Answer.FOR_RQ]
    assert claims.holds(job)
    assert claims.finish([Ending(job, Verb.ABORT, b"x", 100)]) == [Answer.DONE]


def test_a_result_that_is_not_to_be_kept_leaves_nothing_behind(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection, result_ttl=0)
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 0)]) == [Answer.DONE]
    assert [key for key in connection.keys("*") if job.id.encode() in key] == []
    assert connection.zcard("rq:finished:embedding") == 0
    assert connection.hget("rq:worker:w1", "successful_job_count") == b"1"


def test_the_time_that_a_worker_worked_is_what_it_says(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 3)
    jobs = claims.claim(["embedding"], 3).jobs
    claims.finish([Ending(job, Verb.FINISH, b"1", 100) for job in jobs], worked_s=1.5)
    assert float(connection.hget("rq:worker:w1", "total_working_time") or 0) == 1.5


def test_of_a_job_that_was_cancelled_or_deleted_while_it_ran_nothing_is_written(
    claims: Hold, connection: Redis
) -> None:
    enqueue(connection, 2)
    cancelled, deleted = claims.claim(["embedding"], 2).jobs
    fetch(cancelled, connection).cancel()
    connection.delete(f"rq:job:{deleted.id}")
    endings = [Ending(job, Verb.FINISH, b"1", 100) for job in (cancelled, deleted)]
    assert claims.finish(endings) == [Answer.NOT_OURS] * 2
    assert fetch(cancelled, connection).get_status() == JobStatus.CANCELED
    assert connection.keys("rq:results:*") == []
    assert not connection.exists(f"rq:job:{deleted.id}")
    assert not claims.stands(cancelled)
    assert connection.zcard("rq:wip:embedding") == 0


def test_what_a_kept_job_waited_for_is_forgotten_with_it(claims: Hold, connection: Redis) -> None:
    parent = enqueue(connection)[0]
    (dependent,) = dependents_of(parent, connection, 1)
    for _ in range(2):
        job = claims.claim(["embedding"], 1).jobs[0]
        claims.finish([Ending(job, Verb.FINISH, b"1", 100)])
    assert fetch(dependent, connection).get_status() == JobStatus.FINISHED
    assert 0 < connection.ttl(f"rq:job::{dependent.id}:dependencies") <= 100


def test_a_result_kept_for_ever_stays_in_rqs_registry_for_ever(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    claims.finish([Ending(job, Verb.FINISH, b"1", -1)])
    assert connection.zscore("rq:finished:embedding", job.id) == float("inf")
    assert connection.ttl(f"rq:job:{job.id}") == connection.ttl(f"rq:results:{job.id}") == -1


def test_the_books_on_a_run_are_closed_only_when_rq_has_ended_it(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    assert not claims.calls.forget(job).run(connection)
    assert claims.stands(job)
    connection.hset(f"rq:job:{job.id}", "status", "finished")
    assert claims.calls.forget(job).run(connection)
    assert not claims.stands(job)
    assert connection.zcard("rq:wip:embedding") == 0
    assert connection.scard("rq:worker:w1:executions") == 0


def test_more_dependents_or_dependencies_than_one_step_should_look_at_are_left_to_rq(
    claims: Hold, connection: Redis
) -> None:
    many, of_many, few = enqueue(connection, 3)
    for parent in (of_many, few):
        connection.sadd(f"rq:job:{parent.id}:dependents", f"waits-{parent.id}")
        connection.hset(f"rq:job:waits-{parent.id}", mapping={"status": "deferred", "origin": "embedding"})
    connection.sadd(f"rq:job::waits-{of_many.id}:dependencies", *(f"gone{number}" for number in range(101)))
    connection.sadd(f"rq:job::waits-{few.id}:dependencies", *(f"gone{number}" for number in range(100)))
    connection.sadd(f"rq:job:{many.id}:dependents", *(f"gone{number}" for number in range(101)))
    jobs = claims.claim(["embedding"], 3).jobs
    endings = [Ending(job, Verb.FINISH, b"1", 100) for job in jobs]
    assert claims.finish(endings) == [Answer.FOR_RQ, Answer.FOR_RQ, Answer.DONE]


def test_dependents_that_go_on_waiting_are_remembered_as_long_as_the_job(claims: Hold, connection: Redis) -> None:
    parent = enqueue(connection)[0]
    dependents_of(parent, connection, 1)
    job = claims.claim(["embedding"], 1).jobs[0]
    claims.finish([Ending(job, Verb.FAIL, b"x", 50)])
    assert 0 < connection.ttl(f"rq:job:{parent.id}:dependents") <= 50
