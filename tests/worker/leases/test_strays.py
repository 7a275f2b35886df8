"""Jobs that lie nowhere, and those that seem to."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from rq import Queue, SimpleWorker
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer

from impetus_worker.fleet.duties import Strays
from impetus_worker.leases.claims import Ending, Verb, strays

from .hold import Hold, claim_one, enqueue

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.system


def look_for_strays(connection: Redis, patience_s: float = 0.0) -> list[str]:
    """A whole pass, of however many workers."""
    back: list[str] = []
    for _ in range(2):
        while True:
            connection.delete("impetus:recovery:strays:embedding")
            back += strays(["embedding", "embedding-bulk"], 1.0, patience_s).run(connection)[0]
            if connection.get("impetus:recovery:strays:embedding:at") == b"0":
                break
    return back


def test_jobs_whose_queue_was_evicted_are_put_back_once_they_lay_nowhere_for_a_while(
    claims: Hold, connection: Redis
) -> None:
    jobs = {job.id for job in (*enqueue(connection, 900), *enqueue(connection, 2, "embedding-bulk"))}
    running = claims.claim(["embedding"], 1).jobs[0]
    connection.delete("rq:queue:embedding", "rq:queue:embedding-bulk")
    assert look_for_strays(connection, 60) == []
    back = look_for_strays(connection)
    assert sorted(back) == sorted(jobs - {running.id})
    assert look_for_strays(connection) == []
    assert connection.llen("rq:queue:embedding-bulk") == 2
    assert claims.stands(running)
    assert connection.keys("impetus:strays:*") == []


def test_a_started_job_of_which_everything_was_evicted_but_itself_is_put_back(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    connection.delete("impetus:tokens:embedding", "impetus:leases:embedding", "rq:wip:embedding")
    connection.hset("rq:worker:w1", "birth", "now")
    assert look_for_strays(connection) == []  # of a stock worker's, for all that is known
    connection.sadd("impetus:workers", "w1")
    assert look_for_strays(connection) == [job.id]
    assert connection.lrange("rq:queue:embedding", 0, -1) == [job.id.encode()]


def test_a_started_job_without_anything_whose_worker_is_gone_is_put_back(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    connection.delete("impetus:tokens:embedding", "impetus:leases:embedding", "rq:wip:embedding", "rq:worker:w1")
    assert look_for_strays(connection) == [job.id]


def test_a_stray_is_put_back_so_long_after_it_was_first_seen_however_often_it_is_seen(connection: Redis) -> None:
    (job,) = enqueue(connection)
    connection.delete("rq:queue:embedding")
    assert look_for_strays(connection, 60) == []
    connection.zincrby("impetus:strays:embedding", -61, job.id)
    assert look_for_strays(connection, 60) == [job.id]


def test_what_waits_or_runs_where_it_should_is_not_even_noted(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    assert len(claims.claim(["embedding"], 1).jobs) == 1
    connection.sadd("impetus:workers", "w1")
    connection.hset("rq:job:no:id", mapping={"status": "queued", "origin": "embedding"})
    assert look_for_strays(connection, 60) == []
    assert connection.keys("impetus:strays:*") == []


def test_jobs_that_lie_somewhere_are_no_strays(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    target = Queue("embedding", connection=connection, serializer=JSONSerializer)
    parent = enqueue(connection)[0]
    enqueue(connection, depends_on=parent)
    target.enqueue_in(timedelta(seconds=90), "f")
    enqueue(connection)[0].cancel()
    for verb in (Verb.FINISH, Verb.FAIL, Verb.STOP):
        claims.finish([Ending(claims.claim(["embedding"], 1).jobs[0], verb, b"1", 100)])
    stock = SimpleWorker(["embedding"], name="w2", connection=connection, serializer=JSONSerializer)
    theirs = enqueue(connection)[0]
    stock.prepare_execution(theirs)
    stock.prepare_job_execution(theirs)
    connection.lpop("rq:queue:embedding")
    for registry in ("wip", "ready"):  # as earlier versions of RQ had it, and of one whose dependencies are met
        member = enqueue(connection)[0]
        connection.lpop("rq:queue:embedding")
        connection.zadd(f"rq:{registry}:embedding", {member.id: 4e9})
    for _ in range(2):
        target.enqueue("f", rate_limit=RateLimit("one at a time", 1))
    enqueue(connection)
    connection.lmove("rq:queue:embedding", "rq:queue:embedding:intermediate", "RIGHT", "LEFT")
    for key in connection.scan_iter("rq:job:*"):  # whatever somebody saved
        if connection.type(key) == b"hash":
            connection.hset(key, "status", "queued")
    assert look_for_strays(connection) == []


@pytest.mark.parametrize("length", [0, 1500, 30_000])
def test_jobs_that_were_moved_to_another_queue_of_the_role_are_no_strays(
    claims: Hold, connection: Redis, length: int
) -> None:
    enqueue(connection, 3)
    connection.lmove("rq:queue:embedding", "rq:queue:embedding-bulk", "LEFT", "LEFT")
    claims.claim(["embedding-bulk"], 1)
    connection.sadd("impetus:workers", "w1")
    if length:
        connection.rpush("rq:queue:embedding-bulk", *range(length))
    for end in ("LEFT", "RIGHT"):
        connection.lmove("rq:queue:embedding", "rq:queue:embedding-bulk", "LEFT", end)
    assert look_for_strays(connection) == []


def test_a_queue_too_long_to_look_through_is_left_until_it_is_shorter(connection: Redis) -> None:
    (job,) = enqueue(connection)
    connection.rpush("rq:queue:embedding", *(f"other{number}" for number in range(1001)))
    connection.lrem("rq:queue:embedding", 1, job.id)
    assert look_for_strays(connection) == []
    connection.delete("rq:queue:embedding")
    assert look_for_strays(connection) == [job.id]


def test_scheduled_jobs_whose_registry_was_evicted_are_said_to_need_enqueueing_once_each_when_seen_again(
    connection: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue("embedding", connection=connection, serializer=JSONSerializer)
    names = ("lost", "kept", "tried again")
    jobs = [queue.enqueue_in(timedelta(days=1), "impetus_worker.jobs.embed", {"input": "a"}) for _ in names]
    lost, kept, tried_again = (job.id for job in jobs)
    connection.zrem("rq:scheduled:embedding", lost)
    look = Strays(["embedding"])
    connection.zrem("rq:scheduled:embedding", tried_again)
    for number in range(20):
        connection.delete("impetus:recovery:strays:embedding")
        look(connection)
        if number == 0:
            connection.zadd("rq:scheduled:embedding", {tried_again: 4e9})
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("1 scheduled jobs never run")
    assert lost in said
    assert kept not in said
    assert tried_again not in said
