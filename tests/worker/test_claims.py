"""The scripts, held against what RQ itself reads and writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend
from rq.utils import as_text

from impetus_producer.contract import VECTORS_FIELD
from impetus_worker.leases.claims import ClaimedJob, Claims, Ended, Ending, Verb

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.system
LEASE_S = 20
EMBED = "impetus_worker.jobs.embed"


@pytest.fixture
def worker(connection: Redis) -> SimpleWorker:
    """A record in RQ's books under which to claim."""
    worker = SimpleWorker(["embedding", "embedding-bulk"], name="w1", connection=connection, serializer=JSONSerializer)
    worker.register_birth()
    return worker


@pytest.fixture
def claims(worker: SimpleWorker, connection: Redis) -> Claims:
    return Claims(connection, worker.name, LEASE_S)


def enqueue(connection: Redis, count: int = 1, queue: str = "embedding", **options: Any) -> list[Job]:
    target = Queue(queue, connection=connection, serializer=JSONSerializer)
    return [target.enqueue(EMBED, {"input": str(number)}, **options) for number in range(count)]


def claim_one(claims: Claims, connection: Redis, **options: Any) -> ClaimedJob:
    enqueue(connection, 1, **options)
    return claims.claim(["embedding"], 1, 10**9).jobs[0]


def fetch(job: ClaimedJob | Job, connection: Redis) -> Job:
    return Job.fetch(job.id, connection=connection, serializer=JSONSerializer)


def test_a_claimed_job_is_in_rqs_books_as_if_rq_had_started_it(claims: Claims, connection: Redis) -> None:
    ours = claim_one(claims, connection)
    theirs = enqueue(connection)[0]
    stock = SimpleWorker(["embedding"], name="w2", connection=connection, serializer=JSONSerializer)
    stock.register_birth()
    execution = stock.prepare_execution(theirs)
    stock.prepare_job_execution(theirs)

    def written(job_id: str, execution_id: str, worker: str) -> dict[str, object]:
        composite = f"{job_id}:{execution_id}"
        return {
            "job": set(connection.hgetall(f"rq:job:{job_id}")) - {b"impetus_execution"},
            "status": connection.hget(f"rq:job:{job_id}", "status"),
            "execution": set(connection.hgetall(f"rq:execution:{composite}")),
            "execution has a ttl": connection.ttl(f"rq:execution:{composite}") > 0,
            "registry of the job": connection.zrange(f"rq:executions:{job_id}", 0, -1) == [execution_id.encode()],
            "started registry": connection.zscore("rq:wip:embedding", composite) is not None,
            "the worker's executions": connection.smembers(f"rq:worker:{worker}:executions") == {composite.encode()},
            "state": connection.hget(f"rq:worker:{worker}", "state"),
        }

    assert written(ours.id, ours.execution_id, "w1") == written(theirs.id, execution.id, "w2")
    assert fetch(ours, connection).worker_name == "w1"
    assert Execution.fetch(ours.execution_id, ours.id, connection).worker_name == "w1"


def test_a_claim_takes_the_interactive_queue_first_and_no_more_than_asked(claims: Claims, connection: Redis) -> None:
    bulk = enqueue(connection, 3, queue="embedding-bulk")
    interactive = enqueue(connection, 2)
    claimed = claims.claim(["embedding", "embedding-bulk"], 4, 10**9).jobs
    assert [job.id for job in claimed] == [job.id for job in [*interactive, *bulk[:2]]]
    assert [job.queue for job in claimed] == ["embedding"] * 2 + ["embedding-bulk"] * 2
    assert connection.lrange("rq:queue:embedding-bulk", 0, -1) == [bulk[2].id.encode()]


def test_a_claim_stops_at_its_limit_of_bytes(claims: Claims, connection: Redis) -> None:
    enqueue(connection, 10)
    assert len(claims.claim(["embedding"], 10, 1).jobs) == 1


def test_a_suspended_worker_takes_nothing(claims: Claims, connection: Redis) -> None:
    enqueue(connection)
    suspend(connection)
    assert claims.claim(["embedding"], 1, 10**9) == claims.claim(["embedding"], 1, 10**9)
    assert claims.claim(["embedding"], 1, 10**9).suspended
    resume(connection)
    assert len(claims.claim(["embedding"], 1, 10**9).jobs) == 1


def test_jobs_that_are_cancelled_deleted_or_of_another_type_are_passed_over(claims: Claims, connection: Redis) -> None:
    cancelled, deleted, wrong, good = enqueue(connection, 4)
    cancelled.cancel()
    connection.lpush("rq:queue:embedding", cancelled.id)
    connection.delete(f"rq:job:{deleted.id}", f"rq:job:{wrong.id}")
    connection.set(f"rq:job:{wrong.id}", "not a hash")
    assert [job.id for job in claims.claim(["embedding"], 10, 10**9).jobs] == [good.id]
    assert fetch(cancelled, connection).get_status() == JobStatus.CANCELED


def test_a_job_enqueued_twice_is_not_run_beside_itself(claims: Claims, connection: Redis) -> None:
    job = claim_one(claims, connection)
    connection.rpush("rq:queue:embedding", job.id)
    assert claims.claim(["embedding"], 10, 10**9).jobs == []


def test_an_id_that_would_spoil_rqs_registries_is_failed(claims: Claims, connection: Redis) -> None:
    connection.hset("rq:job:a:b", mapping={"status": "queued", "data": "x"})
    connection.rpush("rq:queue:embedding", "a:b")
    assert claims.claim(["embedding"], 1, 10**9).jobs == []
    assert connection.hget("rq:job:a:b", "status") == b"failed"
    assert connection.zrange("rq:failed:embedding", 0, -1) == [b"a:b"]


def test_a_finished_job_reads_as_rqs_own_does(claims: Claims, connection: Redis) -> None:
    job = claim_one(claims, connection, result_ttl=100)
    result = {"answer": [1, 2]}
    assert claims.finish([Ending(job, Verb.FINISH, json.dumps(result).encode(), 100)]) == [Ended.DONE]
    read = fetch(job, connection)
    assert read.get_status() == JobStatus.FINISHED
    assert read.return_value() == result
    assert read.ended_at is not None
    latest = read.latest_result()
    assert latest is not None
    assert latest.type is Result.Type.SUCCESSFUL
    assert latest.worker_name == "w1"
    assert latest.execution_id == job.execution_id
    assert latest.execution_started_at is not None
    assert latest.execution_started_at <= datetime.now(UTC)
    assert job.id in FinishedJobRegistry("embedding", connection=connection)
    assert 0 < connection.ttl(f"rq:job:{job.id}") <= 100
    assert 0 < connection.ttl(f"rq:results:{job.id}") <= 100


def test_vectors_lie_beside_the_result_where_they_are_given(claims: Claims, connection: Redis) -> None:
    enqueue(connection, 3)
    jobs = claims.claim(["embedding"], 3, 10**9).jobs
    blocks = [b"\x00\xff", None, b""]
    claims.finish([Ending(job, Verb.FINISH, b"1", 100, block) for job, block in zip(jobs, blocks, strict=True)])
    for job, block in zip(jobs, blocks, strict=True):
        stream: Any = connection.xrange(f"rq:results:{job.id}")
        ((_, entry),) = stream
        assert entry.get(VECTORS_FIELD.encode()) == block
        assert fetch(job, connection).return_value() == 1


def test_a_failed_job_reads_as_rqs_own_does(claims: Claims, connection: Redis) -> None:
    job = claim_one(claims, connection)
    assert claims.finish([Ending(job, Verb.FAIL, b"errors.Broken: it broke", 50)]) == [Ended.DONE]
    read = fetch(job, connection)
    assert read.get_status() == JobStatus.FAILED
    latest = read.latest_result()
    assert latest is not None
    assert latest.exc_string == "errors.Broken: it broke"
    assert job.id in FailedJobRegistry("embedding", connection=connection)
    requeued = FailedJobRegistry("embedding", connection=connection, serializer=JSONSerializer).requeue(job.id)
    assert requeued.get_status() == JobStatus.QUEUED


def test_an_ended_job_leaves_nothing_of_its_run_behind(claims: Claims, connection: Redis) -> None:
    for verb in (Verb.FINISH, Verb.FAIL, Verb.ABORT, Verb.RETURN):
        job = claim_one(claims, connection)
        claims.finish([Ending(job, verb, b"null", 100)])
        connection.delete("rq:queue:embedding")
    assert connection.keys("rq:execution*") == []
    assert connection.keys("rq:wip:*") == []
    assert connection.keys("rq:worker:w1:executions") == []
    assert connection.hget("rq:worker:w1", "state") == b"idle"
    assert connection.hget("rq:worker:w1", "successful_job_count") == b"1"
    assert connection.hget("rq:worker:w1", "failed_job_count") == b"2"


def test_returned_jobs_are_at_the_front_again_in_their_order(claims: Claims, connection: Redis) -> None:
    jobs = enqueue(connection, 4)
    claimed = claims.claim(["embedding"], 3, 10**9).jobs
    claims.finish([Ending(job, Verb.RETURN) for job in reversed(claimed)])
    assert connection.lrange("rq:queue:embedding", 0, -1) == [job.id.encode() for job in jobs]
    assert {fetch(job, connection).get_status() for job in jobs} == {JobStatus.QUEUED}


def test_a_worker_whose_lease_ran_out_writes_nothing(claims: Claims, connection: Redis) -> None:
    job = claim_one(claims, connection)
    connection.delete(f"rq:execution:{job.id}:{job.execution_id}")  # as time would
    assert claims.recover("embedding") == [job.id]
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Ended.LEASE_LOST]
    assert claims.finish([Ending(job, Verb.FAIL, b"x", 100)]) == [Ended.LEASE_LOST]
    assert claims.finish([Ending(job, Verb.RETURN)]) == [Ended.LEASE_LOST]
    assert not claims.seal(job)
    assert fetch(job, connection).get_status() == JobStatus.QUEUED
    assert connection.lrange("rq:queue:embedding", 0, -1) == [job.id.encode()]
    again = claims.claim(["embedding"], 1, 10**9).jobs[0]
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Ended.LEASE_LOST]
    assert claims.finish([Ending(again, Verb.FINISH, b"2", 100)]) == [Ended.DONE]
    assert fetch(job, connection).return_value() == 2


def test_a_job_with_dependents_is_left_to_rq_unless_it_must_end(claims: Claims, connection: Redis) -> None:
    parent = enqueue(connection)[0]
    enqueue(connection, 1, depends_on=parent)
    job = claims.claim(["embedding"], 1, 10**9).jobs[0]
    assert claims.finish([Ending(job, Verb.FINISH, b"1", 100)]) == [Ended.HAS_DEPENDENTS]
    assert claims.seal(job)
    assert claims.finish([Ending(job, Verb.ABORT, b"x", 100)]) == [Ended.DONE]


def test_renewing_keeps_leases_and_tells_which_are_lost(claims: Claims, connection: Redis) -> None:
    enqueue(connection, 2)
    kept, lost = claims.claim(["embedding"], 2, 10**9).jobs
    connection.expire(f"rq:execution:{kept.id}:{kept.execution_id}", 1)
    connection.delete(f"rq:execution:{lost.id}:{lost.execution_id}")
    assert claims.renew([kept, lost]) == [lost.id]
    assert connection.ttl(f"rq:execution:{kept.id}:{kept.execution_id}") > LEASE_S - 2


def test_recovery_leaves_living_jobs_and_other_peoples_alone(claims: Claims, connection: Redis) -> None:
    living = claim_one(claims, connection)
    theirs = enqueue(connection)[0]
    stock = SimpleWorker(["embedding"], name="w2", connection=connection, serializer=JSONSerializer)
    execution = stock.prepare_execution(theirs)
    stock.prepare_job_execution(theirs)
    connection.delete(execution.key)  # nobody extends a SimpleWorker's lease while it runs
    connection.delete("rq:queue:embedding")
    assert claims.recover("embedding") == []
    assert claims.seal(living)
    assert len(connection.zrange("rq:wip:embedding", 0, -1)) == 2


def test_a_job_in_flight_at_a_death_is_claimed_alone_next_and_only_by_an_idle_worker(
    claims: Claims, connection: Redis
) -> None:
    enqueue(connection, 2)
    doomed = claims.claim(["embedding"], 2, 10**9).jobs
    for job in doomed:
        connection.delete(f"rq:execution:{job.id}:{job.execution_id}")
    back = claims.recover("embedding")
    innocent = enqueue(connection)[0]
    busy = claims.claim(["embedding"], 10, 10**9, idle=False)
    assert (busy.drain, busy.jobs) == (True, [])
    for job_id in back:
        claim = claims.claim(["embedding"], 10, 10**9, idle=True)
        assert [job.id for job in claim.jobs] == [job_id]
        assert claim.jobs[0].suspect
        assert claim.jobs[0].deaths_alone == 0
        claims.finish([Ending(claim.jobs[0], Verb.FINISH, b"1", 100)])
        assert not [name for name in connection.hkeys(f"rq:job:{job_id}") if as_text(name).startswith("impetus")]
    last = claims.claim(["embedding"], 10, 10**9, idle=False)
    assert [job.id for job in last.jobs] == [innocent.id]
    assert not last.jobs[0].suspect


def test_only_deaths_met_alone_are_counted(claims: Claims, connection: Redis) -> None:
    claim_one(claims, connection)
    counts = []
    for _ in range(4):
        (execution,) = connection.keys("rq:execution:*")
        connection.delete(execution)
        claims.recover("embedding")
        (job,) = claims.claim(["embedding"], 1, 10**9).jobs
        counts.append(job.deaths_alone)
    assert counts == [0, 1, 2, 3]


def test_rqs_own_cleanup_does_not_fail_a_job_before_it_is_recovered(claims: Claims, connection: Redis) -> None:
    job = claim_one(claims, connection)
    connection.delete(f"rq:execution:{job.id}:{job.execution_id}")
    StartedJobRegistry("embedding", connection=connection, serializer=JSONSerializer).cleanup()  # as `rq info` does
    assert fetch(job, connection).get_status() == JobStatus.STARTED
    assert claims.recover("embedding") == [job.id]


def test_a_worker_known_to_be_dead_gives_its_jobs_up_at_once(claims: Claims, connection: Redis) -> None:
    job = claim_one(claims, connection)
    successor = Claims(connection, "w9", LEASE_S)
    successor.abandon("w1")
    assert successor.recover("embedding") == [job.id]
    assert connection.keys("rq:worker*") == []
