"""What RQ leaves to its workers, over whatever lies in Redis."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ResponseError
from rq.job import JobStatus

from impetus_worker.awake import AwakeClock
from impetus_worker.companions.link import Link, Reachability, client
from impetus_worker.fleet.chores import Registries, Schedule
from impetus_worker.fleet.housekeeping import Duty, Housekeeping
from impetus_worker.inbox import LookedRound

from ..conftest import LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

pytestmark = pytest.mark.system
REGISTRIES = ("finished", "failed", "deferred", "scheduled", "ready", "wip", "canceled")
KINDS: dict[str, Any] = {
    "string": lambda connection, key: connection.set(key, "x"),
    "list": lambda connection, key: connection.rpush(key, "x"),
    "hash": lambda connection, key: connection.hset(key, "x", "y"),
    "set": lambda connection, key: connection.sadd(key, "x", b"\xff"),
    "sorted set": lambda connection, key: connection.zadd(key, {"x": 1, b"\xff": 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_registries_of_any_type_hold_up_nothing(kind: str, connection: Redis) -> None:
    keys = [
        *(f"rq:{name}:embedding" for name in REGISTRIES),
        "rq:groups",
        "rq:rate-limits",
        "rq:job:x",
        "rq:ratelimits",
    ]
    for key in keys:
        connection.flushall()
        KINDS[kind](connection, key)
        Registries(["embedding"])(connection)
        Schedule(["embedding"])(connection)


def test_a_scheduled_job_whose_limit_cannot_be_read_is_failed_and_the_others_are_enqueued(connection: Redis) -> None:
    connection.hset("rq:job:bad", mapping={"status": "scheduled", "data": "x", "rate_limit_key": "odd"})
    connection.hset("rq:job:good", mapping={"status": "scheduled", "data": "x"})
    connection.zadd("rq:scheduled:embedding", {"bad": 1, "good": 2})
    connection.set("rq:failed:embedding", "of another type")
    Schedule(["embedding"])(connection)
    assert connection.lrange("rq:queue:embedding", 0, -1) == [b"good"]
    assert connection.zcard("rq:scheduled:embedding") == 0
    assert connection.hget("rq:job:bad", "status") == b"failed"


def test_a_duty_that_cannot_be_done_for_what_lies_in_redis_holds_up_no_other(redis_url: str) -> None:
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    done = threading.Event()

    def refused(connection: Redis) -> None:
        raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")

    duties = [Duty("odd", refused, 1.0), Duty("other", lambda connection: done.set(), 1.0)]
    link = Link("housekeeping", lambda: client(redis_url, 5.0), Reachability())
    housekeeping = Housekeeping("housekeeping", link, duties, told.put, 1.0)
    housekeeping.start()
    try:
        assert done.wait(LIMIT_S)
        assert told.get(timeout=LIMIT_S) == LookedRound("housekeeping")
    finally:
        housekeeping.stop()
        assert housekeeping.join(LIMIT_S)


def test_it_has_looked_round_when_nothing_is_left_to_do_and_not_before(redis_url: str) -> None:
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    left = iter((True, True, False))

    def do_a_part(connection: Redis) -> bool:
        more = next(left, False)
        told.put(more)
        return more

    link = Link("chores", lambda: client(redis_url, 5.0), Reachability())
    housekeeping = Housekeeping("chores", link, [Duty("schedule", do_a_part, 60.0)], told.put, 1.0)
    housekeeping.start()
    try:
        assert [told.get(timeout=LIMIT_S) for _ in range(4)] == [True, True, False, LookedRound("chores")]
    finally:
        housekeeping.stop()
        assert housekeeping.join(LIMIT_S)


def test_a_sleep_between_two_duties_is_seen_before_others_are_judged(redis_url: str) -> None:
    time_s = 1000.0
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    nights = iter([3600.0])

    def renew(connection: Redis) -> None:
        done.put("renew")

    def fall_asleep(connection: Redis) -> None:
        nonlocal time_s
        time_s += next(nights, 0.0)
        done.put("record")

    def recover(connection: Redis) -> None:
        done.put("recover")

    duties = [
        Duty("leases", renew, 2.0),
        Duty("record", fall_asleep, 2.0),
        Duty("recovery", recover, 2.0, judges_others=True),
    ]
    link = Link("housekeeping", lambda: client(redis_url, 5.0), Reachability())
    clock = AwakeClock(lambda: time_s)
    housekeeping = Housekeeping("housekeeping", link, duties, lambda fact: None, 10.0, clock)
    housekeeping.start()
    try:
        assert [done.get(timeout=LIMIT_S) for _ in range(4)] == ["renew", "record", "renew", "record"]
        for _ in range(5):
            time_s += 2.0
            assert done.get(timeout=LIMIT_S) == "renew"
            assert done.get(timeout=LIMIT_S) == "record"
        assert done.get(timeout=LIMIT_S) == "recover"
    finally:
        housekeeping.stop()
        assert housekeeping.join(LIMIT_S)


def test_a_server_that_takes_its_time_over_each_answer_is_no_sleep_and_keeps_no_duty_from_being_done(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    time_s = 1000.0
    done: queue.SimpleQueue[str] = queue.SimpleQueue()

    def slowly(name: str) -> Callable[[Redis], None]:
        def do(connection: Redis) -> None:
            nonlocal time_s
            time_s += 4.0
            done.put(name)

        return do

    duties = [
        Duty("leases", slowly("renew"), 2.0),
        Duty("record", slowly("record"), 2.0),
        Duty("recovery", slowly("recover"), 2.0, judges_others=True),
    ]
    link = Link("housekeeping", lambda: client(redis_url, 5.0), Reachability())
    clock = AwakeClock(lambda: time_s)
    housekeeping = Housekeeping("housekeeping", link, duties, lambda fact: None, 10.0, clock)
    housekeeping.start()
    try:
        assert [done.get(timeout=LIMIT_S) for _ in range(6)] == ["renew", "record"] * 3
    finally:
        housekeeping.stop()
        assert housekeeping.join(LIMIT_S)
    assert "leases took 4 s" in caplog.text
    assert "did not run" not in caplog.text


def test_scheduled_jobs_that_are_due_are_queued_as_they_asked_and_no_others(connection: Redis) -> None:
    jobs: dict[str, Any] = {
        "back": {"status": "scheduled"},
        "front": {"status": "scheduled", "enqueue_at_front": "1", "ttl": "100"},
        "stopped": {"status": "canceled"},
        "over": {"status": "finished"},
        "later": {"status": "scheduled"},
    }
    for job_id, fields in jobs.items():
        connection.hset(f"rq:job:{job_id}", mapping=fields)
    connection.zadd("rq:scheduled:embedding", {**dict.fromkeys(jobs, 1), "gone": 1, "later": 4e9})
    connection.zadd("rq:finished:embedding", {"over": 4e9})
    connection.set("rq:scheduler-lock:embedding", "a stock scheduler", ex=60)
    assert not Schedule(["embedding"])(connection)
    assert connection.zcard("rq:scheduled:embedding") == 6
    connection.delete("rq:scheduler-lock:embedding")
    assert not Schedule(["embedding"])(connection)
    assert connection.lrange("rq:queue:embedding", 0, -1) == [b"front", b"back"]
    assert connection.zrange("rq:scheduled:embedding", 0, -1) == [b"later"]
    assert connection.hget("rq:job:front", "status") == b"queued"
    assert 0 < connection.ttl("rq:job:front") <= 100
    assert connection.hget("rq:job:stopped", "status") == b"canceled"


@pytest.mark.parametrize("status", [status for status in JobStatus if status is not JobStatus.CANCELED])
def test_a_scheduled_job_that_somebody_saved_as_it_was_before_is_queued_all_the_same(
    status: JobStatus, connection: Redis
) -> None:
    connection.hset("rq:job:x", mapping={"status": status, "data": "x"})
    connection.zadd("rq:scheduled:embedding", {"x": 1})
    Schedule(["embedding"])(connection)
    assert connection.hget("rq:job:x", "status") == b"queued"
    assert connection.lrange("rq:queue:embedding", 0, -1) == [b"x"]


def test_a_scheduled_job_that_a_stock_worker_runs_by_now_is_not_queued(connection: Redis) -> None:
    connection.hset("rq:job:x", mapping={"status": "started", "data": "x"})
    connection.zadd("rq:executions:x", {"a run": 4e9})
    connection.zadd("rq:scheduled:embedding", {"x": 1})
    Schedule(["embedding"])(connection)
    assert connection.llen("rq:queue:embedding") == connection.zcard("rq:scheduled:embedding") == 0


def test_many_that_are_due_at_once_are_queued_a_part_at_a_time(connection: Redis) -> None:
    with connection.pipeline() as pipeline:
        for number in range(501):
            pipeline.hset(f"rq:job:{number}", "status", "scheduled")
            pipeline.zadd("rq:scheduled:embedding", {str(number): 1})
        pipeline.execute()
    assert Schedule(["embedding"])(connection)
    assert connection.llen("rq:queue:embedding") == 500
    assert not Schedule(["embedding"])(connection)
    assert connection.llen("rq:queue:embedding") == 501
