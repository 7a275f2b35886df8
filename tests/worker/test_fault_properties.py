"""The scripts against a model of the registries, a live worker against arbitrary bytes; by hypothesis, a real server.

The model says what RQ's books must hold; it knows nothing of how the scripts write them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from rq import Queue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from impetus_producer import Producer
from impetus_worker.leases.claims import ClaimedJob, Claims, Ended, Ending, Verb

from .breakable import Workers
from .conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system
EMBED = "impetus_worker.jobs.embed"
QUEUES = ("embedding", "embedding-bulk")
WORKERS = ("w1", "w2")
_BOUNDED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    # Shrinking asks a real server thousands of times; put Phase.shrink here to hunt one down.
    phases=[Phase.generate],
)


# -- the scripts -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Run:
    """One claim of one job: what a worker believes it holds."""

    claimed: ClaimedJob
    worker: str
    alive: bool = True
    """Its lease: until it is ended, runs out or is given up."""
    in_registry: bool = True
    """In the started registry: until it is ended or recovered."""


@dataclass(eq=False)
class _Job:
    id: str
    queue: str
    status: str = "queued"
    suspect: bool = False
    """In flight at a death: nothing may run beside it."""
    run: _Run | None = None
    """The claim that counts."""
    results: list[bytes] = field(default_factory=list)


class Registries(RuleBasedStateMachine):
    """Two workers, two queues; leases run out when the machine says so, as time would."""

    url = ""
    runs: Bundle[_Run] = Bundle("runs")

    @initialize()
    def empty(self) -> None:
        self.connection = Redis.from_url(self.url)
        self.connection.flushall()
        self.claims = {worker: Claims(self.connection, worker, 1000) for worker in WORKERS}
        self.jobs: dict[str, _Job] = {}
        self.all_runs: list[_Run] = []
        self.waiting: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        self.suspended = False
        for worker in WORKERS:
            self.connection.hset(f"rq:worker:{worker}", mapping={"state": "idle", "queues": ",".join(QUEUES)})

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()

    @rule(queue=st.sampled_from(QUEUES), count=st.integers(1, 4))
    def enqueue(self, queue: str, count: int) -> None:
        target = Queue(queue, connection=self.connection, serializer=JSONSerializer)
        for _ in range(count):
            job = target.enqueue(EMBED, {"input": "a"}, job_id=f"j{len(self.jobs)}")
            self.jobs[job.id] = _Job(job.id, queue)
            self.waiting[queue].append(job.id)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data(), queue=st.sampled_from(QUEUES))
    def enqueue_one_twice(self, data: st.DataObject, queue: str) -> None:
        """As a client does whose first answer was lost."""
        if self.waiting[queue]:
            job_id = data.draw(st.sampled_from(self.waiting[queue]))
            self.connection.rpush(f"rq:queue:{queue}", job_id)
            self.waiting[queue].append(job_id)

    @rule(target=runs, worker=st.sampled_from(WORKERS), limit=st.integers(1, 5), both=st.booleans(), idle=st.booleans())
    def claim(self, worker: str, limit: int, both: bool, idle: bool) -> Any:
        queues = QUEUES if both else QUEUES[:1]
        claim = self.claims[worker].claim(queues, limit, 10**9, idle=idle)
        assert claim.suspended == self.suspended
        taken, drain = ([], False) if self.suspended else self._taken(queues, limit, idle)
        assert claim.drain == drain
        assert [(job.id, job.queue) for job in claim.jobs] == [(job.id, job.queue) for job in taken]
        made = [_Run(claimed, worker) for claimed in claim.jobs]
        for job, run in zip(taken, made, strict=True):
            if job.run is not None:
                job.run.in_registry = False
            job.status, job.run = "started", run
        self.all_runs += made
        return multiple(*made)

    def _taken(self, queues: tuple[str, ...], limit: int, idle: bool) -> tuple[list[_Job], bool]:
        """What is to be claimed, and whether a suspect was left for a worker that is idle."""
        taken: list[_Job] = []
        for queue in queues:
            while self.waiting[queue] and len(taken) < limit:
                job = self.jobs[self.waiting[queue][0]]
                ended = job.status in ("finished", "failed")
                if ended or job in taken or (job.run is not None and job.run.alive):
                    self.waiting[queue].pop(0)  # enqueued twice
                elif job.suspect and (taken or not idle):
                    return taken, True
                else:
                    self.waiting[queue].pop(0)
                    taken.append(job)
                    if job.suspect:
                        return taken, False
        return taken, False

    @rule(run=runs, verb=st.sampled_from([Verb.FINISH, Verb.FAIL, Verb.ABORT, Verb.RETURN]))
    def end(self, run: _Run, verb: Verb) -> None:
        payload = uuid4().hex.encode()
        (ended,) = self.claims[run.worker].finish([Ending(run.claimed, verb, payload, -1)])
        job = self.jobs[run.claimed.id]
        if not run.alive or job.run is not run:
            assert ended is Ended.LEASE_LOST
            return
        assert ended is Ended.DONE
        run.alive = run.in_registry = False
        job.run = None
        if verb is Verb.RETURN:
            job.status = "queued"
            self.waiting[job.queue].insert(0, job.id)
        else:
            job.status = "finished" if verb is Verb.FINISH else "failed"
            job.results.append(payload)
            job.suspect = False

    @rule(run=runs)
    def time_passes(self, run: _Run) -> None:
        """The lease runs out."""
        self.connection.delete(f"rq:execution:{run.claimed.id}:{run.claimed.execution_id}")
        run.alive = False

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        mine = [run for run in self.all_runs if run.worker == worker]
        lost = self.claims[worker].renew([run.claimed for run in mine])
        assert sorted(lost) == sorted(run.claimed.id for run in mine if not run.alive)

    @rule(queue=st.sampled_from(QUEUES))
    def recover(self, queue: str) -> None:
        dead = [
            run
            for run in self.all_runs
            if run.in_registry and not run.alive and self.jobs[run.claimed.id].queue == queue
        ]
        back = self.claims["w1"].recover(queue)
        assert sorted(back) == sorted(run.claimed.id for run in dead)
        for run in dead:
            run.in_registry = False
            job = self.jobs[run.claimed.id]
            job.status, job.run, job.suspect = "queued", None, True
        self.waiting[queue][:0] = back

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: str) -> None:
        """A supervisor knows that the worker is dead; another of its name comes."""
        self.claims[worker].abandon(worker)
        for run in self.all_runs:
            if run.worker == worker:
                run.alive = False
        self.connection.hset(f"rq:worker:{worker}", mapping={"state": "idle", "queues": ",".join(QUEUES)})

    @rule()
    def suspend_or_resume(self) -> None:
        self.suspended = not self.suspended
        (suspend if self.suspended else resume)(self.connection)

    @invariant()
    def the_books_are_as_the_model_says(self) -> None:
        if not hasattr(self, "connection"):
            return
        read = self.connection
        for queue in QUEUES:
            waiting: Any = read.lrange(f"rq:queue:{queue}", 0, -1)
            assert [job_id.decode() for job_id in waiting] == self.waiting[queue]
            assert _members(read, f"rq:wip:{queue}") == {
                _composite(run) for run in self.all_runs if run.in_registry and self.jobs[run.claimed.id].queue == queue
            }
            for registry in ("finished", "failed"):
                assert _members(read, f"rq:{registry}:{queue}") == {
                    job.id for job in self.jobs.values() if (job.status, job.queue) == (registry, queue)
                }
        for job in self.jobs.values():
            fields: Any = read.hmget(f"rq:job:{job.id}", "status", "impetus_execution")
            status, execution = fields
            assert status.decode() == job.status
            assert execution == (job.run.claimed.execution_id.encode() if job.run else None)
            assert read.xlen(f"rq:results:{job.id}") == len(job.results) <= 1
        alive = {_composite(run) for run in self.all_runs if run.alive}
        executions: Any = read.keys("rq:execution:*")
        assert {key.decode().removeprefix("rq:execution:") for key in executions} == alive
        for worker in WORKERS:
            members: Any = read.smembers(f"rq:worker:{worker}:executions")
            books = {each.decode() for each in members}
            mine = {_composite(run) for run in self.all_runs if run.worker == worker}
            assert alive & mine <= books <= {_composite(run) for run in self.all_runs if run.in_registry} & mine


def _composite(run: _Run) -> str:
    return f"{run.claimed.id}:{run.claimed.execution_id}"


def _members(connection: Redis, key: str) -> set[str]:
    members: Any = connection.zrange(key, 0, -1)
    return {member.decode() for member in members}


def test_the_scripts_keep_the_books_of_any_sequence_of_events(redis_url: str) -> None:
    machine = type("AtThisServer", (Registries,), {"url": redis_url})
    run_state_machine_as_test(
        machine,
        settings=settings(_BOUNDED, max_examples=60, stateful_step_count=25),
    )


# -- bytes -----------------------------------------------------------------------------------------------------------

_NUMBERS = st.sampled_from(
    [b"0", b"-1", b"1", b"9" * 30, b"10000000000000000", b"-9223372036854775808", b"1e9", b"nan"]
)
_VALUES = st.one_of(
    st.binary(max_size=40),
    _NUMBERS,
    st.sampled_from([b"[]", b"{}", b"null", b"[null]", b'["a"]', b"\xff", b"\x80\x02]q\x00.", b"started", b"canceled"]),
)
_DATA = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ).map(lambda request: json.dumps([EMBED, None, [request], {}]).encode()),
    st.fixed_dictionaries(
        {"input": st.one_of(st.text(max_size=10), st.lists(st.text(max_size=10), max_size=3))},
        optional={
            "dimensions": st.integers(-5, 500),
            "model": st.text(max_size=5),
            "encoding_format": st.sampled_from(["base64", "float", "x"]),
            "truncate": st.booleans(),
        },
    ).map(lambda request: json.dumps([EMBED, None, [request], {}]).encode()),
)
_NAMES = [
    *(
        "status",
        "created_at",
        "enqueued_at",
        "started_at",
        "ended_at",
        "origin",
        "timeout",
        "result_ttl",
        "failure_ttl",
    ),
    *("retries_left", "retry_intervals", "repeats_left", "repeat_intervals", "dependency_ids", "meta", "description"),
    *("success_callback_name", "failure_callback_name", "stopped_callback_name", "success_callback_timeout"),
    *("rate_limit_key", "webhooks", "worker_name", "last_heartbeat", "group_id", "ttl", "result", "exc_info"),
    *("impetus_execution", "allow_dependency_failures", "enqueue_at_front", "serializer", "unique", "deletion_ttl"),
    *("impetus_alone", "impetus_suspect", "impetus_deaths"),
]
_FIELDS = st.dictionaries(
    st.one_of(st.sampled_from(_NAMES).map(str.encode), st.binary(min_size=1, max_size=10)), _VALUES, max_size=8
)
_IDS = st.one_of(
    st.uuids().map(lambda each: each.hex.encode()),
    st.binary(max_size=12),
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
_SIBLINGS = st.sets(st.sampled_from(["rq:results:", "rq:executions:", "rq:job:%:dependents"]), max_size=1)


@pytest.fixture
def live(redis_url: str, tmp_path: Path) -> Iterator[Workers]:
    """A worker on the simulated backend."""
    workers = Workers(redis_url, tmp_path / "log", roles=("embedding",), lease_s=2, simulated_a_ms=0.1, max_wait_ms=0.1)
    try:
        with Redis.from_url(redis_url) as connection:
            eventually(lambda: connection.scard("rq:workers"))
        yield workers
    finally:
        workers.stop()


def test_arbitrary_bytes_in_jobs_neither_stop_a_worker_nor_spoil_the_registries(
    live: Workers, redis_url: str, connection: Redis, tmp_path: Path
) -> None:
    producer = Producer(redis_url)
    (pid,) = live.worker_pids()
    given_out: set[bytes] = set()

    @settings(_BOUNDED, max_examples=150)
    @given(job_id=_IDS, fields=_FIELDS, data=_DATA, siblings=_SIBLINGS, queue=st.sampled_from(QUEUES))
    def each(job_id: bytes, fields: dict[bytes, bytes], data: bytes, siblings: set[str], queue: str) -> None:
        if job_id in given_out:
            return
        given_out.add(job_id)
        key = b"rq:job:" + job_id
        connection.hset(key, mapping={b"status": b"queued", b"origin": queue.encode(), **fields, b"data": data})  # type: ignore[dict-item]
        for sibling in siblings:
            name = sibling.encode()
            connection.set(name.replace(b"%", job_id) if b"%" in name else name + job_id, "of another type")
        connection.rpush(f"rq:queue:{queue}", job_id)
        neighbour = producer.embed("a good one", bulk=queue != QUEUES[0])
        eventually(lambda: neighbour.status() == "finished" or live.worker_pids() != [pid], 10)
        assert live.worker_pids() == [pid], (tmp_path / "log").read_text()[-3000:]
        passed_over = fields.get(b"status") in (b"canceled", b"finished", b"failed", b"stopped")
        eventually(lambda: connection.hget(key, "status") in (b"finished", b"failed", None) or passed_over, 10)
        eventually(lambda: not connection.zcard(f"rq:wip:{queue}"), 10)
        for registry in (StartedJobRegistry, FinishedJobRegistry, FailedJobRegistry):
            registry(queue, connection=connection, serializer=JSONSerializer).get_job_ids()

    each()
    producer.connection.close()


@pytest.mark.parametrize("message", ["not json", "[]", '{"command": "stop-job", "job_id": ["a"]}', '{"command": null}'])
def test_a_command_that_is_none_stops_nobody(
    live: Workers, redis_url: str, connection: Redis, tmp_path: Path, message: str
) -> None:
    (pid,) = live.worker_pids()
    keys: Any = connection.smembers("rq:workers")
    (key,) = keys
    channel = f"rq:pubsub:{key.decode().removeprefix('rq:worker:')}"
    connection.publish(channel, message)
    connection.publish(channel, json.dumps({"command": "shutdown"}))
    eventually(lambda: live.process.poll() is not None or live.worker_pids() != [pid], 5)
    assert "stopping (warm)" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
