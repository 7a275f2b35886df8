"""The scripts, held against what RQ itself reads and writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rq import Queue, SimpleWorker
from rq.job import Dependency, Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from impetus_producer.contract import VECTORS_FIELD
from impetus_worker.fleet.duties import Recovery
from impetus_worker.leases.claims import Answer, Claim, ClaimedJob, Claims, Ending, Renewal, Verb, bury, recover, sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class Hold:
    """`Claims` of one worker, each call run at once."""

    def __init__(self, connection: Redis, worker: str, lease_s: int = LEASE_S) -> None:
        self.connection = connection
        self.calls = Claims(worker, lease_s)

    def claim(self, queues: Sequence[str], max_jobs: int, max_bytes: int = 10**9) -> Claim:
        return self.calls.claim(queues, max_jobs, max_bytes).run(self.connection)

    def finish(self, endings: Sequence[Ending], worked_s: float = 0.0) -> list[Answer]:
        return self.calls.finish(endings, worked_s).run(self.connection)

    def renew(self, jobs: Sequence[ClaimedJob]) -> Renewal:
        return self.calls.renew(jobs).run(self.connection)

    def seal(self, job: ClaimedJob) -> bool:
        return self.calls.seal(job).run(self.connection)

    def lease_left_s(self, job: ClaimedJob) -> float:
        score = self.connection.zscore(f"impetus:leases:{job.queue}", job.id)
        assert score is not None
        seconds: Any = self.connection.time()
        return float(score) - float(seconds[0])

    def let_lapse(self, job: ClaimedJob) -> None:
        """As time would."""
        self.connection.zadd(f"impetus:leases:{job.queue}", {job.id: 1}, xx=True)

    def recover(self, queue: str = "embedding") -> list[str]:
        self.connection.delete(f"impetus:recovery:{queue}")
        return recover(queue, 1.0).run(self.connection)

    def stands(self, job: ClaimedJob) -> bool:
        held: Any = self.connection.hget(f"impetus:tokens:{job.queue}", job.id)
        return bool(held and held.startswith(job.token.encode()))


@pytest.fixture
def claims(worker: SimpleWorker, connection: Redis) -> Hold:
    return Hold(connection, worker.name)


def enqueue(connection: Redis, count: int = 1, queue: str = "embedding", **options: Any) -> list[Job]:
    target = Queue(queue, connection=connection, serializer=JSONSerializer)
    return [target.enqueue(EMBED, {"input": str(number)}, **options) for number in range(count)]


def claim_one(claims: Hold, connection: Redis, **options: Any) -> ClaimedJob:
    enqueue(connection, 1, **options)
    return claims.claim(["embedding"], 1).jobs[0]


def fetch(job: ClaimedJob | Job, connection: Redis) -> Job:
    return Job.fetch(job.id, connection=connection, serializer=JSONSerializer)


def test_a_claimed_job_is_in_rqs_books_as_if_rq_had_started_it(claims: Hold, connection: Redis) -> None:
    ours = claim_one(claims, connection)
    theirs = enqueue(connection)[0]
    stock = SimpleWorker(["embedding"], name="w2", connection=connection, serializer=JSONSerializer)
    stock.register_birth()
    execution = stock.prepare_execution(theirs)
    stock.prepare_job_execution(theirs)

    def written(job_id: str, run: str, worker: str) -> dict[str, object]:
        composite = f"{job_id}:{run}"
        return {
            "job": set(connection.hgetall(f"rq:job:{job_id}")),
            "status": connection.hget(f"rq:job:{job_id}", "status"),
            "started registry": connection.zscore("rq:wip:embedding", composite) is not None,
            "the worker's executions": connection.smembers(f"rq:worker:{worker}:executions") == {composite.encode()},
            "state": connection.hget(f"rq:worker:{worker}", "state"),
        }

    assert written(ours.id, ours.token, "w1") == written(theirs.id, execution.id, "w2")
    read = fetch(ours, connection)
    assert read.worker_name == "w1"
    assert read.started_at is not None
    seconds: Any = connection.time()
    assert abs(read.started_at.timestamp() - seconds[0]) < 5
    assert claims.stands(ours)
    assert 0 < claims.lease_left_s(ours) <= LEASE_S + 1


def test_a_claim_takes_the_interactive_queue_first_and_no_more_than_asked(claims: Hold, connection: Redis) -> None:
    bulk = enqueue(connection, 3, queue="embedding-bulk")
    interactive = enqueue(connection, 2)
    claimed = claims.claim(["embedding", "embedding-bulk"], 4).jobs
    assert [job.id for job in claimed] == [job.id for job in [*interactive, *bulk[:2]]]
    assert [job.queue for job in claimed] == ["embedding"] * 2 + ["embedding-bulk"] * 2
    assert connection.lrange("rq:queue:embedding-bulk", 0, -1) == [bulk[2].id.encode()]


def test_a_claim_that_reaches_its_limit_of_bytes_leaves_the_rest_where_it_is(claims: Hold, connection: Redis) -> None:
    jobs = enqueue(connection, 10)
    claim = claims.claim(["embedding"], 10, 1)
    assert [job.id for job in claim.jobs] == [jobs[0].id]
    assert claim.more
    assert connection.lrange("rq:queue:embedding", 0, -1) == [job.id.encode() for job in jobs[1:]]


def test_a_claim_says_whether_the_queues_may_have_more(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    assert claims.claim(["embedding"], 2).more
    assert not claims.claim(["embedding"], 2).more


def test_jobs_that_are_gone_cost_a_claim_a_thousand_looks_at_most(claims: Hold, connection: Redis) -> None:
    connection.rpush("rq:queue:embedding", *(f"gone{number}" for number in range(3000)))
    job = enqueue(connection)[0]
    claim = claims.claim(["embedding"], 10)
    assert (claim.jobs, claim.more) == ([], True)
    assert connection.llen("rq:queue:embedding") > 1900
    while not claim.jobs:
        claim = claims.claim(["embedding"], 10)
    assert claim.jobs[0].id == job.id


def test_a_job_enqueued_again_while_its_worker_is_gone_runs_anew_and_the_old_run_is_over(
    claims: Hold, connection: Redis
) -> None:
    old = claim_one(claims, connection)
    connection.hset(f"rq:job:{old.id}", "status", "queued")
    connection.rpush("rq:queue:embedding", old.id)
    (new,) = Hold(connection, "w2").claim(["embedding"], 1).jobs
    assert new.token != old.token
    assert connection.zrange("rq:wip:embedding", 0, -1) == [f"{new.id}:{new.token}".encode()]
    assert connection.scard("rq:worker:w1:executions") == 0
    assert claims.finish([Ending(old, Verb.FINISH, b"1", 100)]) == [Answer.NOT_OURS]


def test_a_suspended_worker_takes_nothing(claims: Hold, connection: Redis) -> None:
    enqueue(connection)
    suspend(connection)
    assert claims.claim(["embedding"], 1).jobs == []
    assert claims.claim(["embedding"], 1).suspended
    resume(connection)
    assert len(claims.claim(["embedding"], 1).jobs) == 1


def test_jobs_that_are_cancelled_deleted_or_of_another_type_are_passed_over(claims: Hold, connection: Redis) -> None:
    cancelled, deleted, wrong, good = enqueue(connection, 4)
    cancelled.cancel()
    connection.lpush("rq:queue:embedding", cancelled.id)
    connection.delete(f"rq:job:{deleted.id}", f"rq:job:{wrong.id}")
    connection.set(f"rq:job:{wrong.id}", "not a hash")
    assert [job.id for job in claims.claim(["embedding"], 10).jobs] == [good.id]
    assert fetch(cancelled, connection).get_status() == JobStatus.CANCELED


def test_a_job_enqueued_twice_is_not_run_beside_itself(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    connection.rpush("rq:queue:embedding", job.id)
    assert claims.claim(["embedding"], 10).jobs == []


def test_an_id_that_would_spoil_rqs_registries_is_failed(claims: Hold, connection: Redis) -> None:
    connection.hset("rq:job:a:b", mapping={"status": "queued", "data": "x"})
    connection.rpush("rq:queue:embedding", "a:b")
    assert claims.claim(["embedding"], 1).jobs == []
    assert connection.hget("rq:job:a:b", "status") == b"failed"
    assert connection.zrange("rq:failed:embedding", 0, -1) == [b"a:b"]


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
    assert not claims.seal(job)
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
    assert claims.seal(job)
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


def test_renewing_keeps_leases_and_tells_which_runs_are_over(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    kept, lost = claims.claim(["embedding"], 2).jobs
    claims.let_lapse(kept)
    connection.hset("impetus:tokens:embedding", lost.id, "another w2")
    score = connection.zscore("rq:wip:embedding", f"{kept.id}:{kept.token}")
    connection.zadd("rq:wip:embedding", {f"{kept.id}:{kept.token}": 1})
    assert claims.renew([kept, lost]) == Renewal(lost=[lost.id], cancelled=[])
    assert claims.lease_left_s(kept) > LEASE_S - 2
    moved = connection.zscore("rq:wip:embedding", f"{kept.id}:{kept.token}")
    assert moved is not None
    assert score is not None
    assert moved >= score
    assert connection.smembers("rq:worker:w1:executions") == {f"{kept.id}:{kept.token}".encode()}


def test_renewing_does_not_shorten_a_hold_for_a_long_ending(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    assert claims.seal(job)
    assert claims.lease_left_s(job) > 170
    claims.renew([job])
    assert claims.lease_left_s(job) > 170


def test_a_wish_to_cancel_is_told_at_renewal_and_goes_with_the_ending(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    wanted, other = claims.claim(["embedding"], 2).jobs
    connection.set(f"impetus:cancel:{wanted.id}", 1)
    assert claims.renew([other, wanted]) == Renewal(lost=[], cancelled=[wanted.id])
    claims.finish([Ending(wanted, Verb.RETURN)])
    again = claims.claim(["embedding"], 1).jobs[0]
    assert (again.id, again.cancelled) == (wanted.id, True)
    claims.finish([Ending(again, Verb.STOP, b"stopped", 100)])
    assert not connection.exists(f"impetus:cancel:{wanted.id}")


def test_recovery_leaves_living_jobs_and_other_peoples_alone(claims: Hold, connection: Redis) -> None:
    living = claim_one(claims, connection)
    theirs = enqueue(connection)[0]
    stock = SimpleWorker(["embedding"], name="w2", connection=connection, serializer=JSONSerializer)
    execution = stock.prepare_execution(theirs)
    stock.prepare_job_execution(theirs)
    connection.delete(execution.key)  # nobody extends a SimpleWorker's lease while it runs
    connection.delete("rq:queue:embedding")
    assert claims.recover() == []
    assert sweep("embedding", "0", 0.001).run(connection) == ("0", [])
    assert claims.stands(living)
    assert len(connection.zrange("rq:wip:embedding", 0, -1)) == 2


def test_recovery_is_one_workers_affair_at_a_time(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    assert recover("embedding", 60.0).run(connection) == []
    claims.let_lapse(job)
    assert recover("embedding", 60.0).run(connection) == []
    assert claims.recover() == [job.id]


def test_many_that_lapsed_are_put_back_a_part_a_call_and_without_a_pause(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 601)
    jobs = [*claims.claim(["embedding"], 400).jobs, *claims.claim(["embedding"], 400).jobs]
    for job in jobs:
        claims.let_lapse(job)
    recovery = Recovery(["embedding"], 60.0)
    rounds = 0
    while recovery(connection):
        rounds += 1
    assert rounds == 2
    assert connection.llen("rq:queue:embedding") == 601


def test_recovered_jobs_are_at_the_front_in_the_order_of_their_claims(claims: Hold, connection: Redis) -> None:
    jobs = enqueue(connection, 40)
    claimed = [*claims.claim(["embedding"], 17).jobs, *claims.claim(["embedding"], 13).jobs]
    for job in claimed:
        claims.let_lapse(job)
    assert claims.recover() == [job.id for job in claimed]
    assert connection.lrange("rq:queue:embedding", 0, -1) == [job.id.encode() for job in jobs]
    assert connection.hget("rq:worker:w1", "state") == b"idle"


def test_a_lapse_is_no_death(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection, ttl=1000)
    assert connection.ttl(f"rq:job:{job.id}") == -1
    for _ in range(6):
        claims.let_lapse(job)
        claims.recover()
        assert 0 < connection.ttl(f"rq:job:{job.id}") <= 1000
        (job,) = claims.claim(["embedding"], 1).jobs
        assert (job.deaths, job.deaths_alone, job.suspect) == (0, 0, False)


def test_a_cancelled_job_does_not_come_back(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    fetch(job, connection).cancel()
    claims.let_lapse(job)
    assert claims.recover() == []
    assert fetch(job, connection).get_status() == JobStatus.CANCELED
    assert connection.llen("rq:queue:embedding") == 0
    assert not claims.stands(job)


def test_a_death_that_a_supervisor_saw_is_counted_once_for_what_had_begun(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 3)
    begun, also_begun, waiting = claims.claim(["embedding"], 3).jobs
    for _ in range(2):  # the answer to the first was lost
        back = bury("w1", ["embedding", "embedding-bulk"], [begun.id, also_begun.id]).run(connection)
    assert back == []
    again = {job.id: job for job in claims.claim(["embedding"], 3).jobs}
    assert [again[job.id].deaths for job in (begun, also_begun, waiting)] == [1, 1, 0]
    assert {job.deaths_alone for job in again.values()} == {0}
    assert not any(job.suspect for job in again.values())
    bury("w1", ["embedding"], [begun.id]).run(connection)
    again = {job.id: job for job in claims.claim(["embedding"], 3).jobs}
    assert (again[begun.id].deaths, again[begun.id].deaths_alone, again[begun.id].suspect) == (2, 1, True)
    claims.finish([Ending(again[begun.id], Verb.FINISH, b"1", 100)])
    assert connection.hkeys("impetus:deaths:embedding") == [also_begun.id.encode()]


def test_a_worker_seen_to_be_dead_gives_up_its_jobs_and_leaves_the_books(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    other = Hold(connection, "w2")
    enqueue(connection)
    theirs = other.claim(["embedding"], 1).jobs[0]
    assert bury("w1", ["embedding"], []).run(connection) == [job.id]
    assert other.stands(theirs)
    assert not any(b"w1" in key for key in connection.keys("*"))


def test_a_job_whose_lease_and_token_were_evicted_comes_back(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    no_token, no_lease = claims.claim(["embedding"], 2).jobs
    connection.hdel("impetus:tokens:embedding", no_token.id)
    connection.zrem("impetus:leases:embedding", no_lease.id)
    assert sweep("embedding", "0", 0.001).run(connection) == ("0", [no_token.id])
    assert claims.recover() == [no_lease.id]
    assert connection.zcard("rq:wip:embedding") == 0


def test_recovery_costs_what_lapsed_and_not_what_is_in_flight(claims: Hold, connection: Redis) -> None:
    connection.zadd("impetus:leases:embedding", {f"job{number}": 4e9 for number in range(32_000)})
    connection.hset("impetus:tokens:embedding", mapping={f"job{number}": "i0 w9" for number in range(32_000)})
    connection.zadd("impetus:leases:embedding", {"job7": 1})
    connection.hset("rq:job:job7", mapping={"status": "started", "data": "x"})
    connection.config_set("slowlog-log-slower-than", 0)
    connection.slowlog_reset()
    try:
        assert claims.recover() == ["job7"]
        entries: Any = connection.slowlog_get(100)
    finally:
        connection.config_set("slowlog-log-slower-than", -1)
    # Counted and not timed: the script's commands do not grow with what is in flight.
    assert len(entries) < 40


def test_rqs_own_cleanup_does_not_fail_a_job_before_it_is_recovered(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    claims.let_lapse(job)
    StartedJobRegistry("embedding", connection=connection, serializer=JSONSerializer).cleanup()  # as `rq info` does
    assert fetch(job, connection).get_status() == JobStatus.STARTED
    assert claims.recover() == [job.id]


def test_an_id_that_is_twice_in_the_queue_is_claimed_once(claims: Hold, connection: Redis) -> None:
    (job,) = enqueue(connection)
    connection.rpush("rq:queue:embedding", job.id)
    assert [claimed.id for claimed in claims.claim(["embedding"], 10).jobs] == [job.id]
    assert connection.llen("rq:queue:embedding") == 0


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


def test_a_hold_for_a_long_ending_forgets_the_deaths_and_is_refused_to_a_job_that_was_cancelled(
    claims: Hold, connection: Redis
) -> None:
    enqueue(connection, 2)
    ended, cancelled = claims.claim(["embedding"], 2).jobs
    connection.hset("impetus:deaths:embedding", mapping={ended.id: 1, f"{ended.id}:alone": 1, "another": 1})
    assert claims.seal(ended)
    assert connection.hkeys("impetus:deaths:embedding") == [b"another"]
    fetch(cancelled, connection).cancel()
    assert not claims.seal(cancelled)


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


def test_the_trace_of_an_older_run_is_swept_and_the_run_that_counts_goes_on(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    old = job.token[:-1] + ("0" if job.token[-1] != "0" else "1")
    connection.zadd("rq:wip:embedding", {f"{job.id}:{old}": 4e9})
    assert sweep("embedding", "0", 0.001).run(connection) == ("0", [])
    assert claims.stands(job)
    assert connection.zrange("rq:wip:embedding", 0, -1) == [f"{job.id}:{job.token}".encode()]
    assert connection.llen("rq:queue:embedding") == 0
