"""Leases, deaths and what comes back, held against RQ's books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rq import SimpleWorker
from rq.job import JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from impetus_worker.fleet.duties import Recovery
from impetus_worker.leases.claims import LONGEST_LEASE_S, Ending, Renewal, Verb, bury, recover, strays, sweep

from .hold import LEASE_S, Hold, claim_one, enqueue, fetch

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.system


def test_renewing_keeps_leases_and_tells_which_runs_are_over(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    kept, lost = claims.claim(["embedding"], 2).jobs
    claims.let_lapse(kept)
    connection.hset("impetus:tokens:embedding", lost.id, "another w2")
    score = connection.zscore("rq:wip:embedding", f"{kept.id}:{kept.token}")
    connection.zadd("rq:wip:embedding", {f"{kept.id}:{kept.token}": 1})
    before = claims.time_s()
    assert claims.renew([kept, lost]) == Renewal(lost=[lost.id], cancelled=[])
    assert claims.lease_end(kept) >= before + LEASE_S
    moved = connection.zscore("rq:wip:embedding", f"{kept.id}:{kept.token}")
    assert moved is not None
    assert score is not None
    assert moved >= score
    assert connection.smembers("rq:worker:w1:executions") == {f"{kept.id}:{kept.token}".encode()}


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
    assert sweep("embedding", 0.001).run(connection) == []
    assert claims.stands(living)
    assert len(connection.zrange("rq:wip:embedding", 0, -1)) == 2


def test_recovery_is_one_workers_affair_at_a_time(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    assert recover("embedding", 60.0).run(connection) == []
    claims.let_lapse(job)
    assert recover("embedding", 60.0).run(connection) == []
    assert claims.recover() == [job.id]


@pytest.mark.parametrize("kind", ["endless", "from before the clock was set back", "of another type"])
def test_a_turn_that_lasts_longer_than_any_holds_up_nobody(claims: Hold, connection: Redis, kind: str) -> None:
    enqueue(connection, 2)
    lapsed, adrift = claims.claim(["embedding"], 2).jobs
    claims.let_lapse(lapsed)
    connection.hdel("impetus:tokens:embedding", adrift.id)
    for key in ("impetus:recovery:embedding", "impetus:recovery:sweep:embedding"):
        if kind == "of another type":
            connection.hset(key, "a", 1)
        else:
            connection.set(key, 1, ex=None if kind == "endless" else 200_000)
    assert recover("embedding", 60.0).run(connection) == [lapsed.id]
    assert sweep("embedding", 60.0).run(connection) == [adrift.id]


def test_who_sweeps_or_looks_for_strays_leaves_it_to_the_others_no_sooner_than_it_said(
    claims: Hold, connection: Redis
) -> None:
    def looks() -> list[str]:
        return sweep("embedding", 60.0).run(connection) + strays(["embedding"], 60.0, 0.0).run(connection)[0]

    assert looks() == []
    enqueue(connection, 2)
    (adrift,) = claims.claim(["embedding"], 1).jobs
    connection.hdel("impetus:tokens:embedding", adrift.id)
    stray: Any = connection.lpop("rq:queue:embedding")
    assert looks() == []
    connection.delete("impetus:recovery:sweep:embedding", "impetus:recovery:strays:embedding")
    assert looks() == [adrift.id, stray.decode()]


def test_a_lease_from_before_the_servers_clock_was_set_back_ends_soon_all_the_same(
    claims: Hold, connection: Redis
) -> None:
    enqueue(connection, 2)
    long_gone, living = claims.claim(["embedding"], 2).jobs
    connection.zadd("impetus:leases:embedding", {long_gone.id: connection.time()[0] + 2 * 86400})
    before = claims.time_s()
    assert claims.recover() == []
    assert before + LONGEST_LEASE_S <= claims.lease_end(long_gone) <= claims.time_s() + LONGEST_LEASE_S
    assert claims.lease_end(living) <= claims.time_s() + LEASE_S + 1
    claims.renew([long_gone])
    assert claims.lease_end(long_gone) <= claims.time_s() + LEASE_S + 1


def test_what_was_asked_before_the_server_fell_silent_puts_nothing_back_when_it_wakes(
    claims: Hold, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = claim_one(claims, connection)
    claims.let_lapse(job)
    seconds: Any = connection.time()[0]
    monkeypatch.setattr(connection, "time", lambda: (seconds - 60, 0))
    assert not Recovery(["embedding"], 0.001)(connection)
    assert claims.stands(job)
    monkeypatch.undo()
    assert Recovery(["embedding"], 0.001)(connection)
    assert not claims.stands(job)


def test_many_that_lapsed_are_put_back_a_part_a_call_and_without_a_pause(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 601)
    jobs = [*claims.claim(["embedding"], 400).jobs, *claims.claim(["embedding"], 400).jobs]
    for job in jobs:
        claims.let_lapse(job)
    recovery = Recovery(["embedding"], 60.0)
    rounds = 0
    while recovery(connection):
        rounds += 1
    assert rounds == 7
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


def test_a_job_that_somebody_saved_as_it_was_before_comes_back_all_the_same(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 3)
    lapsed, adrift, died = claims.claim(["embedding"], 3).jobs
    for job in (lapsed, adrift, died):
        connection.hset(f"rq:job:{job.id}", "status", "queued")
    claims.let_lapse(lapsed)
    connection.hdel("impetus:tokens:embedding", adrift.id)
    assert claims.recover() == [lapsed.id]
    assert sweep("embedding", 0.001).run(connection) == [adrift.id]
    assert bury("w1", ["embedding"], []).run(connection) == ([died.id], 0)
    assert connection.lrange("rq:queue:embedding", 0, -1) == [each.id.encode() for each in (died, adrift, lapsed)]


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
    assert back == ([], 0)
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
    assert bury("w1", ["embedding"], []).run(connection) == ([job.id], 0)
    assert other.stands(theirs)
    assert not any(b"w1" in key for key in connection.keys("*"))


def test_what_a_death_costs_is_what_the_dead_held_and_not_what_is_in_flight(claims: Hold, connection: Redis) -> None:
    connection.hset("impetus:tokens:embedding", mapping={f"job{number}": "i0 w9" for number in range(32_000)})
    job = claim_one(claims, connection)
    connection.config_resetstat()
    assert bury("w1", ["embedding"], []).run(connection) == ([job.id], 0)
    asked: Any = connection.info("commandstats")
    # A key that holds all tokens is never read whole.
    assert not {
        name for name in asked if name in ("cmdstat_hgetall", "cmdstat_hkeys", "cmdstat_hvals", "cmdstat_hscan")
    }


def test_many_jobs_of_a_dead_worker_come_back_in_parts_in_the_order_of_its_claims(
    claims: Hold, connection: Redis
) -> None:
    jobs = [*enqueue(connection, 450), *enqueue(connection, 3, "embedding-bulk")]
    claimed = claims.claim(["embedding", "embedding-bulk"], 500).jobs
    begun = [claimed[0].id, claimed[-1].id]
    left, parts = 1, 0
    while left:
        back, left = bury("w1", ["embedding", "embedding-bulk"], begun).run(connection)
        assert len(back) <= 100
        parts += 1
    assert parts == 5
    assert bury("w1", ["embedding", "embedding-bulk"], begun).run(connection) == ([], 0)
    again = claims.claim(["embedding", "embedding-bulk"], 500).jobs
    assert [job.id for job in again] == [job.id for job in jobs]
    assert [job.deaths for job in again] == [1, *[0] * 451, 1]


def test_deaths_count_though_somebody_deleted_the_list_of_what_a_worker_ran(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    begun, other = claims.claim(["embedding"], 2).jobs
    connection.delete("rq:worker:w1:executions")
    assert bury("w1", ["embedding"], [begun.id]).run(connection) == ([begun.id], 0)
    assert claims.claim(["embedding"], 1).jobs[0].deaths == 1
    claims.let_lapse(other)
    assert claims.recover() == [other.id]


def test_a_job_whose_lease_and_token_were_evicted_comes_back(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 2)
    no_token, no_lease = claims.claim(["embedding"], 2).jobs
    connection.hdel("impetus:tokens:embedding", no_token.id)
    connection.zrem("impetus:leases:embedding", no_lease.id)
    assert sweep("embedding", 0.001).run(connection) == [no_token.id]
    assert claims.recover() == [no_lease.id]
    assert connection.zcard("rq:wip:embedding") == 0


def test_workers_look_through_the_started_jobs_together(claims: Hold, connection: Redis) -> None:
    enqueue(connection, 1000)
    jobs = claims.claim(["embedding"], 1000).jobs
    connection.delete("impetus:tokens:embedding")
    back: list[str] = []
    for _ in range(12):
        connection.delete("impetus:recovery:sweep:embedding")
        back += sweep("embedding", 1.0).run(connection)
    assert sorted(back) == sorted(job.id for job in jobs)


def test_recovery_costs_what_lapsed_and_not_what_is_in_flight(claims: Hold, connection: Redis) -> None:
    lease_end: Any = connection.time()[0] + LEASE_S
    connection.zadd("impetus:leases:embedding", {f"job{number}": lease_end for number in range(32_000)})
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


def test_an_ending_by_rqs_means_forgets_the_deaths_once_it_is_over_and_is_refused_to_a_job_that_was_cancelled(
    claims: Hold, connection: Redis
) -> None:
    enqueue(connection, 2)
    ended, cancelled = claims.claim(["embedding"], 2).jobs
    connection.hset("impetus:deaths:embedding", mapping={ended.id: 1, f"{ended.id}:alone": 1, "another": 1})
    assert claims.holds(ended)
    assert not claims.calls.forget(ended).run(connection)
    assert connection.hlen("impetus:deaths:embedding") == 3  # its callback may end this worker yet
    fetch(ended, connection).set_status(JobStatus.FINISHED)
    assert claims.calls.forget(ended).run(connection)
    assert connection.hkeys("impetus:deaths:embedding") == [b"another"]
    fetch(cancelled, connection).cancel()
    assert not claims.holds(cancelled)


def test_the_trace_of_an_older_run_is_swept_and_the_run_that_counts_goes_on(claims: Hold, connection: Redis) -> None:
    job = claim_one(claims, connection)
    old = job.token[:-1] + ("0" if job.token[-1] != "0" else "1")
    connection.zadd("rq:wip:embedding", {f"{job.id}:{old}": 4e9})
    assert sweep("embedding", 0.001).run(connection) == []
    assert claims.stands(job)
    assert connection.zrange("rq:wip:embedding", 0, -1) == [f"{job.id}:{job.token}".encode()]
    assert connection.llen("rq:queue:embedding") == 0
