"""Claims, held against what RQ itself reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rq import SimpleWorker
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from impetus_worker.leases.claims import Answer, Ending, Left, Verb
from impetus_worker.leases.portions import WHOLE, Portion, Share

from .hold import LEASE_S, Hold, claim_one, enqueue, fetch

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.system


def test_a_claimed_job_is_in_rqs_books_as_if_rq_had_started_it(claims: Hold, connection: Redis) -> None:
    before = claims.time_s()
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
    assert before <= read.started_at.timestamp() < claims.time_s() + 1
    assert claims.stands(ours)
    assert before < claims.lease_end(ours)


def test_a_lease_lasts_as_long_as_was_said_and_rqs_registry_waits_a_day_longer(claims: Hold, connection: Redis) -> None:
    before = claims.time_s()
    job = claim_one(claims, connection)
    after = claims.time_s() + 1
    assert before + LEASE_S <= claims.lease_end(job) <= after + LEASE_S
    score: Any = connection.zscore("rq:wip:embedding", f"{job.id}:{job.token}")
    assert score is not None
    assert before + LEASE_S <= float(score) - 24 * 3600 <= after + LEASE_S


def test_a_claimed_job_does_not_expire(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection, ttl=100)
    assert connection.ttl(f"rq:job:{job.id}") == -1


def test_the_tokens_of_many_jobs_are_a_table_and_no_list_that_is_searched_from_its_beginning(
    claims: Hold, connection: Redis
) -> None:
    enqueue(connection, 32)
    jobs = claims.claim(["embedding"], 32).jobs
    assert connection.object("encoding", "impetus:tokens:embedding") == b"hashtable"
    assert set(connection.hkeys("impetus:tokens:embedding")) == {job.id.encode() for job in jobs}


def test_only_a_job_under_a_rate_limit_holds_a_place_by_which_rq_counts(claims: Hold, connection: Redis) -> None:
    free, limited = enqueue(connection, 2)
    connection.hset(f"rq:job:{limited.id}", "rate_limit_key", "ours")
    _, job = claims.claim(["embedding"], 2).jobs
    run = f"rq:execution:{job.id}:{job.token}"
    assert job.id == limited.id != free.id
    assert set(connection.keys("rq:execution*")) == {run.encode(), f"rq:executions:{job.id}".encode()}
    assert connection.hget(run, "job_id") == job.id.encode()
    assert LEASE_S < connection.ttl(run) <= 25 * 3600
    assert LEASE_S < connection.ttl(f"rq:executions:{job.id}") <= 25 * 3600


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


def test_a_claim_says_whether_the_queues_have_more(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 3)
    assert claims.claim(["embedding"], 2).more
    assert not claims.claim(["embedding"], 1).more


@pytest.mark.parametrize(
    ("share", "held", "job_s", "running", "waiting", "taken"),
    [
        (Share(), 0, 1.0, 0, 8, 8),  # alone: all
        (Share(0.5, 0.5), 0, 1.0, 0, 8, 2),  # half of its share
        (Share(0.5, 0.5), 2, 1.0, 2, 6, 0),  # it has that already, and the other may come
        (Share(0.5, 0.5), 0, 0.05, 0, 8, 6),  # what its device does until it asks again
        (Share(0.5, 0.5), 0, 0.05, 0, 2, 2),  # and no more than there is
        (Share(0.1, 0.9), 0, 1.0, 0, 5, 0),  # the other is done with all of them before this one is with one
        (Share(0.1, 0.9), 0, 1.0, 0, 9, 1),
        (Share(0.1, 0.9), 1, 1.0, 8, 4, 0),  # but not with two
        (Share(0.9, 0.1), 0, 1.0, 0, 8, 4),
        (Share(0.45, 0.55), 0, 1.0, 0, 1, 1),  # it is hardly slower
        (Share(1 / 64, 1 / 64), 0, 1.0, 0, 1, 1),  # one for the first of many
        (Share(1 / 64, 1 / 64), 1, 1.0, 30, 8, 0),  # of whom others are idle
        (Share(1 / 64, 1 / 64), 1, 1.0, 64, 8, 1),  # or none is
        (Share(0.0, 1.0), 0, 1.0, 0, 8, 0),
    ],
)
def test_a_claim_beside_others_takes_what_would_not_end_sooner_there(
    claims: Hold, connection: Redis, share: Share, held: int, job_s: float, running: int, waiting: int, taken: int
) -> None:
    enqueue(connection, running)
    claims.claim(["embedding"], running)
    left = [job.id.encode() for job in enqueue(connection, waiting)][taken:]
    claim = claims.claim(["embedding"], 100, portions=[Portion(share, held, job_s)])
    assert len(claim.jobs) == taken
    first = left[0] if left else b""
    assert claim.left == (Left(len(left), running + waiting, for_others=bool(left), first=first),)


def test_each_queue_has_its_portion(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 3)
    enqueue(connection, 8, queue="embedding-bulk")
    claim = claims.claim(["embedding", "embedding-bulk"], 100, portions=[WHOLE, Portion(Share(0.5, 0.5))])
    assert [job.queue for job in claim.jobs] == ["embedding"] * 3 + ["embedding-bulk"] * 2
    assert [left.for_others for left in claim.left] == [False, True]


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
    other = Hold(connection, "w2")
    (new,) = other.claim(["embedding"], 1).jobs
    assert new.token != old.token
    assert other.stands(new)
    assert other.lease_end(new) > other.time_s()
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


def test_an_id_that_is_twice_in_the_queue_is_claimed_once(claims: Hold, connection: Redis) -> None:
    (job,) = enqueue(connection)
    connection.rpush("rq:queue:embedding", job.id)
    assert [claimed.id for claimed in claims.claim(["embedding"], 10).jobs] == [job.id]
    assert connection.llen("rq:queue:embedding") == 0
