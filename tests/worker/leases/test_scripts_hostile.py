"""Every script, with each key it names of each other type, absent or huge: nothing is ever half done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis as Client
from redis.exceptions import ResponseError

from impetus_producer.contract import STREAM_KEY, StreamEvent, WorkerRecord
from impetus_producer.servers.answers import code
from impetus_worker.fleet.chores import Schedule
from impetus_worker.fleet.routing import Routing
from impetus_worker.leases.claims import ClaimedJob, Claims, Ending, Verb, bury, recover, strays, sweep
from impetus_worker.leases.outcomes import Said
from impetus_worker.leases.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis import Redis

pytestmark = pytest.mark.system
QUEUE = "embedding"
IDS = ["one", "two", "three", "four"]
_LAST_STREAM_ID = f"{2**64 - 1}-{2**64 - 1}"


@dataclass
class World:
    """A queue and one worker, w1, in the books of both."""

    connection: Redis
    claims: Claims

    @classmethod
    def new(cls, connection: Redis) -> World:
        with connection.pipeline(transaction=False) as pipeline:
            pipeline.flushall()
            for job_id in IDS:
                fields: Any = {"status": "queued", "data": "x", "origin": QUEUE, "ttl": "100", "created_at": "then"}
                pipeline.hset(f"rq:job:{job_id}", mapping=fields)
            pipeline.rpush(f"rq:queue:{QUEUE}", *IDS)
            pipeline.hset("rq:worker:w1", mapping={"birth": "then", "state": "busy", "queues": QUEUE})
            pipeline.sadd("rq:workers", "rq:worker:w1", "rq:worker:w2")
            pipeline.sadd(f"rq:workers:{QUEUE}", "rq:worker:w1")
            pipeline.set("impetus:worker:w2", "{}", ex=100)
            pipeline.execute()
        return cls(connection, Claims("w1", 20))

    def claim(self) -> list[ClaimedJob]:
        return self.claims.claim([QUEUE], 10, 10**9).run(self.connection).jobs

    def defer(self) -> None:
        """A job that waits for the first and another."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.hset("rq:job:waiter", mapping={"status": "deferred", "origin": QUEUE, "ttl": "100"})
            pipeline.sadd("rq:job:one:dependents", "waiter")
            pipeline.sadd("rq:job::waiter:dependencies", "one", "gone")
            pipeline.zadd(f"rq:deferred:{QUEUE}", {"waiter": 1})
            pipeline.execute()

    def schedule(self) -> None:
        self.connection.delete(f"rq:queue:{QUEUE}")
        for job_id in IDS:
            self.connection.hset(f"rq:job:{job_id}", "status", "scheduled")
        self.connection.zadd(f"rq:scheduled:{QUEUE}", dict.fromkeys(IDS, 1.0))

    def lapse(self) -> None:
        self.connection.zadd(f"impetus:leases:{QUEUE}", dict.fromkeys(IDS, 1.0))

    def state(self) -> dict[bytes, bytes]:
        """All that the server holds."""
        found: Any = self.connection.keys("*")
        keys: list[bytes] = sorted(found)
        with self.connection.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.dump(key)
            return dict(zip(keys, pipeline.execute(), strict=True))

    def lost(self) -> list[str]:
        """Jobs that are nowhere: neither on a queue, nor started with a token, nor found by the sweep, nor over."""
        keys = [*PLACES, *(f"rq:job:{job_id}" for job_id in IDS)]
        kinds = self._asked(("TYPE", key) for key in keys)
        read = {key: READ[kind] for key, kind in zip(keys, kinds, strict=True) if kind in READ}
        answers = self._asked((command, key, *rest) for key, (command, *rest) in read.items())
        held = dict(zip(read, answers, strict=True))
        queued, scheduled, started, swept = (set(held.get(key, ())) for key in PLACES)
        started |= {run.rpartition(b":")[0] for run in swept}
        lost = []
        for job_id in IDS:
            fields = held.get(f"rq:job:{job_id}")
            if not isinstance(fields, dict):
                continue
            status = fields.get(b"status")
            places: dict[Any, set[bytes]] = {b"queued": queued, b"started": started, b"scheduled": scheduled}
            place = places.get(status)
            if place is not None and job_id.encode() not in place:
                lost.append(f"{job_id} {status!r}")
        return lost

    def _asked(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """What the server answers, to all at once."""
        pipeline: Any
        with self.connection.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute()
            return answers


PLACES = [f"rq:queue:{QUEUE}", f"rq:scheduled:{QUEUE}", f"impetus:tokens:{QUEUE}", f"rq:wip:{QUEUE}"]
READ: dict[bytes, tuple[Any, ...]] = {
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", 0, -1),
    b"hash": ("HGETALL",),
}
"""By the type of a key, what reads all that it holds."""


def _routing() -> Routing:
    record = WorkerRecord(
        name="w1", role="embedding", model="m", backend="b", neural_engine=True, serving=True, device="d"
    )
    return Routing(record, is_serving=lambda: True, engine_deaths=lambda: 0, tell=lambda fact: None)


def _relay(world: World, jobs: list[ClaimedJob]) -> None:
    relay = Relay("w1")
    for job in jobs:
        relay.say(Said(job, StreamEvent.TEXT, "run", 0, "text"))
        relay.watch(job)
    relay.relaying(1.0).run(world.connection)


def _ending(verb: Verb) -> Callable[[World, list[ClaimedJob]], object]:
    def end(world: World, jobs: list[ClaimedJob]) -> None:
        payload = b"" if verb is Verb.RETURN else b'"result"'
        world.claims.finish([Ending(job, verb, payload, 100) for job in jobs], 1.5).run(world.connection)

    return end


STEPS: dict[str, Any] = {
    "claim": lambda world, jobs: world.claim(),
    **{verb.value: _ending(verb) for verb in Verb},
    "renew": lambda world, jobs: world.claims.renew(jobs).run(world.connection),
    "holds": lambda world, jobs: world.claims.holds(jobs[0]).run(world.connection),
    "forget": lambda world, jobs: world.claims.forget(jobs[0]).run(world.connection),
    "recover": lambda world, jobs: recover(QUEUE, 1.0).run(world.connection),
    "sweep": lambda world, jobs: sweep(QUEUE, 0.001).run(world.connection),
    "strays": lambda world, jobs: strays([QUEUE], 0.001, 0).run(world.connection),
    "bury": lambda world, jobs: bury("w1", [QUEUE], ["one", "two"]).run(world.connection),
    "announce": lambda world, jobs: _routing().look(world.connection),
    "withdraw": lambda world, jobs: _routing().leave(world.connection),
    "schedule": lambda world, jobs: Schedule([QUEUE])(world.connection),
    "relay": lambda world, jobs: _relay(world, jobs),
}


def prepared(connection: Redis, step: str) -> tuple[World, list[ClaimedJob]]:
    """A world in which the step has something to do."""
    world, jobs = World.new(connection), []
    if step not in ("claim", "schedule"):
        jobs = world.claim()
        assert len(jobs) == len(IDS)
        world.defer()
    if step == "claim":
        connection.hset("rq:job:two", "rate_limit_key", "limit")
        connection.hset("rq:job:with:colon", mapping={"status": "queued", "data": "x"})
        connection.linsert(f"rq:queue:{QUEUE}", "BEFORE", "three", "with:colon")
        connection.hset(f"impetus:deaths:{QUEUE}", mapping={"one": "1", "one:alone": "1"})
        connection.set("impetus:cancel:one", 1)
    if step == "recover":
        world.lapse()
    if step == "schedule":
        world.schedule()
    return world, jobs


KEYS = [
    f"rq:queue:{QUEUE}",
    "rq:queues",
    "rq:job:one",
    "rq:job:two",
    "rq:job:waiter",
    "rq:results:one",
    f"rq:wip:{QUEUE}",
    "rq:worker:w1",
    "rq:worker:w1:executions",
    "rq:workers",
    f"rq:workers:{QUEUE}",
    "rq:workers:standby",
    f"rq:finished:{QUEUE}",
    f"rq:failed:{QUEUE}",
    f"rq:scheduled:{QUEUE}",
    f"rq:deferred:{QUEUE}",
    f"rq:scheduler-lock:{QUEUE}",
    "rq:job:one:dependents",
    "rq:job::one:dependencies",
    "rq:job::waiter:dependencies",
    "rq:executions:two",
    f"impetus:tokens:{QUEUE}",
    f"impetus:leases:{QUEUE}",
    f"impetus:deaths:{QUEUE}",
    "impetus:worker:w1",
    "impetus:worker:w2",
    "impetus:cancel:one",
    f"{STREAM_KEY}one",
    f"impetus:recovery:{QUEUE}",
    f"impetus:recovery:sweep:{QUEUE}:at",
    f"impetus:strays:{QUEUE}",
    "impetus:awaited:one",
]


def _make(connection: Any, key: str, kind: str) -> None:
    connection.delete(key)
    match kind:
        case "string":
            connection.set(key, "x")
        case "list":
            connection.rpush(key, "x", b"\xff\x00")
        case "set":
            connection.sadd(key, "x", b"\xff\x00")
        case "sorted set":
            connection.zadd(key, {"x": 1, b"\xff\x00": 2})
        case "hash":
            connection.hset(key, mapping={"x": "y", b"\xff\x00": b"\xff"})
        case "stream that takes no more":
            connection.xadd(key, {"x": "y"}, id=_LAST_STREAM_ID)


KINDS = ["absent", "string", "list", "set", "sorted set", "hash", "stream that takes no more"]


@pytest.mark.parametrize("step", STEPS)
def test_a_key_of_another_type_leaves_nothing_half_done_and_stops_no_script(step: str, connection: Redis) -> None:
    for key in KEYS:
        for kind in KINDS:
            world, jobs = prepared(connection, step)
            _make(connection, key, kind)
            lost_before = world.lost()
            STEPS[step](world, jobs)
            if not key.startswith(("rq:queue:", "rq:scheduled:")):
                assert world.lost() == lost_before, (key, kind)


NUMBERS: list[Any] = ["1e3", "9" * 30, "-" + "9" * 30, "nan", "inf", "-5", "", "0x10", b"\xff\xfe", "1.5", " 7"]


@pytest.mark.parametrize("step", STEPS)
def test_a_field_that_is_no_number_leaves_nothing_half_done_and_stops_no_script(step: str, connection: Redis) -> None:
    numbers = ("ttl", "timeout", "result_ttl", "failure_ttl", "retries_left", "enqueue_at_front", "created_at")
    for number in NUMBERS:
        world, jobs = prepared(connection, step)
        for job_id in (*IDS, "waiter"):
            if connection.exists(f"rq:job:{job_id}"):
                connection.hset(f"rq:job:{job_id}", mapping=dict.fromkeys(numbers, number))
        counts = ("successful_job_count", "failed_job_count", "total_working_time", "birth", "queues")
        connection.hset("rq:worker:w1", mapping=dict.fromkeys(counts, number))
        STEPS[step](world, jobs)
        assert world.lost() == [], number


@pytest.mark.parametrize("step", STEPS)
def test_what_lies_in_our_own_books_may_be_anything(step: str, connection: Redis) -> None:
    for value in (*NUMBERS, "one two three", "token w1", " ", "x" * 100_000):
        world, jobs = prepared(connection, step)
        connection.hset(f"impetus:tokens:{QUEUE}", "one", value)
        connection.hset(f"impetus:deaths:{QUEUE}", mapping={"one": value, "one:alone": value})
        STEPS[step](world, jobs)
        assert world.lost() == [], value


@pytest.mark.parametrize("step", STEPS)
def test_without_memory_a_script_does_all_or_nothing(step: str, connection: Redis) -> None:
    world, jobs = prepared(connection, step)
    before = world.state()
    connection.config_set("maxmemory", 1)
    try:
        STEPS[step](world, jobs)
    except ResponseError as error:
        refused = code(error)
    else:
        refused = ""
    finally:
        connection.config_set("maxmemory", 0)
    assert refused in ("", "OOM")
    if refused:
        assert world.state() == before
    assert world.lost() == []


@pytest.mark.parametrize("step", STEPS)
def test_a_user_who_may_not_publish_is_refused_no_script(step: str, connection: Redis, redis_url: str) -> None:
    world, jobs = prepared(connection, step)
    execute: Any = connection.execute_command
    execute("ACL", "SETUSER", "mute", "reset", "on", ">word", "~*", "+@all")
    try:
        with Client.from_url(redis_url.replace("redis://", "redis://mute:word@")) as mute:
            world.connection = mute
            STEPS[step](world, jobs)
    finally:
        execute("ACL", "DELUSER", "mute")
