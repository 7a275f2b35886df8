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
from impetus_worker.leases.claims import Answer, ClaimedJob, Claims, Ending, Verb, bury, recover
from tests.patience import eventually

from ..conftest import listening
from .breakable import Workers

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

_STATUS = {Verb.FINISH: "finished", Verb.FAIL: "failed", Verb.ABORT: "failed", Verb.STOP: "stopped"}


@dataclass(eq=False)
class _Run:
    """One claim of one job: what a worker believes it holds."""

    claimed: ClaimedJob
    worker: str
    lapsed: bool = False
    """Whether its lease ran out: anybody may put the job back then, and until somebody does it goes on."""

    @property
    def held(self) -> str:
        return f"{self.claimed.token} {self.worker}"

    @property
    def composite(self) -> str:
        return f"{self.claimed.id}:{self.claimed.token}"


@dataclass(eq=False)
class _Job:
    id: str
    queue: str
    status: str = "queued"
    deaths: int = 0
    deaths_alone: int = 0
    run: _Run | None = None
    """The run whose token stands."""
    results: list[bytes] = field(default_factory=list)


class Registries(RuleBasedStateMachine):
    """Two workers, two queues; leases run out when the machine says so, as time would."""

    url = ""
    runs: Bundle[_Run] = Bundle("runs")

    @initialize()
    def empty(self) -> None:
        self.connection = Redis.from_url(self.url)
        self.connection.flushall()
        self.claims = {worker: Claims(worker, 1000) for worker in WORKERS}
        self.jobs: dict[str, _Job] = {}
        self.all_runs: list[_Run] = []
        self.waiting: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        self.suspended = False
        for worker in WORKERS:
            self._be_born(worker)

    def _be_born(self, worker: str) -> None:
        record: dict[Any, Any] = {"birth": "now", "state": "idle", "queues": ",".join(QUEUES)}
        self.connection.hset(f"rq:worker:{worker}", mapping=record)

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()

    @rule(queue=st.sampled_from(QUEUES), count=st.integers(1, 4), twice=st.booleans())
    def enqueue(self, queue: str, count: int, twice: bool) -> None:
        """`twice`: as a client does whose first answer was lost."""
        target = Queue(queue, connection=self.connection, serializer=JSONSerializer)
        for _ in range(count):
            job = target.enqueue(EMBED, {"input": "a"}, job_id=f"j{len(self.jobs)}")
            self.jobs[job.id] = _Job(job.id, queue)
            self.waiting[queue].append(job.id)
            if twice:
                self.connection.rpush(f"rq:queue:{queue}", job.id)
                self.waiting[queue].append(job.id)

    @precondition(lambda self: any(job.status == "started" for job in self.jobs.values()))
    @rule(data=st.data())
    def enqueue_one_that_runs(self, data: st.DataObject) -> None:
        """The same, later."""
        job_id = data.draw(st.sampled_from([job.id for job in self.jobs.values() if job.status == "started"]))
        self.connection.rpush(f"rq:queue:{self.jobs[job_id].queue}", job_id)
        self.waiting[self.jobs[job_id].queue].append(job_id)

    @rule(target=runs, worker=st.sampled_from(WORKERS), limit=st.integers(1, 5), both=st.booleans())
    def claim(self, worker: str, limit: int, both: bool) -> Any:
        queues = QUEUES if both else QUEUES[:1]
        claim = self.claims[worker].claim(queues, limit, 10**9).run(self.connection)
        assert claim.suspended == self.suspended
        taken = [] if self.suspended else self._taken(queues, limit)
        assert [(job.id, job.queue) for job in claim.jobs] == [(job.id, job.queue) for job in taken]
        made = [_Run(claimed, worker) for claimed in claim.jobs]
        for job, run in zip(taken, made, strict=True):
            assert (run.claimed.deaths, run.claimed.deaths_alone) == (job.deaths, job.deaths_alone)
            job.status, job.run = "started", run
        self.all_runs += made
        return multiple(*made)

    def _taken(self, queues: tuple[str, ...], limit: int) -> list[_Job]:
        """What is to be claimed."""
        taken: list[_Job] = []
        for queue in queues:
            while self.waiting[queue] and len(taken) < limit:
                job = self.jobs[self.waiting[queue].pop(0)]
                # Else it was enqueued twice, and has ended or runs.
                if job.status == "queued" and job not in taken:
                    taken.append(job)
        return taken

    @rule(run=runs, verb=st.sampled_from([*_STATUS, Verb.RETURN]))
    def end(self, run: _Run, verb: Verb) -> None:
        """By the worker that believes that it has it, whether or not its lease has run out."""
        payload = uuid4().hex.encode()
        (answer,) = self.claims[run.worker].finish([Ending(run.claimed, verb, payload, -1)]).run(self.connection)
        job = self.jobs[run.claimed.id]
        if job.run is not run:
            assert answer is Answer.NOT_OURS
            return
        assert answer is Answer.DONE
        job.run = None
        if verb is Verb.RETURN:
            job.status = "queued"
            self.waiting[job.queue].insert(0, job.id)
        else:
            job.status = _STATUS[verb]
            job.results.append(payload)
            job.deaths = job.deaths_alone = 0

    @rule(run=runs)
    def time_passes(self, run: _Run) -> None:
        """The lease runs out."""
        if self.jobs[run.claimed.id].run is run:
            self.connection.zadd(f"impetus:leases:{run.claimed.queue}", {run.claimed.id: 1})
            run.lapsed = True

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        mine = [run for run in self.all_runs if run.worker == worker]
        renewal = self.claims[worker].renew([run.claimed for run in mine]).run(self.connection)
        stands = [run for run in mine if self.jobs[run.claimed.id].run is run]
        assert sorted(renewal.lost) == sorted(run.claimed.id for run in mine if run not in stands)
        for run in stands:
            run.lapsed = False

    @rule(queue=st.sampled_from(QUEUES))
    def put_back_what_lapsed(self, queue: str) -> None:
        """A lapse is no death."""
        self.connection.delete(f"impetus:recovery:{queue}")
        lapsed = [run for run in self._standing(queue) if run.lapsed]
        assert recover(queue, 1.0).run(self.connection) == self._give_back(queue, lapsed)

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def die(self, worker: str, data: st.DataObject) -> None:
        """A supervisor saw it end, and says so twice; another of its name comes."""
        mine = {queue: [run for run in self._standing(queue) if run.worker == worker] for queue in QUEUES}
        held = [run.claimed.id for runs in mine.values() for run in runs]
        begun = data.draw(st.sets(st.sampled_from(held))) if held else set()
        back, _ = bury(worker, QUEUES, sorted(begun)).run(self.connection)
        for job_id in begun:
            self.jobs[job_id].deaths += 1
            self.jobs[job_id].deaths_alone += len(begun) == 1
        assert back == [job_id for queue in QUEUES for job_id in self._give_back(queue, mine[queue])]
        assert bury(worker, QUEUES, sorted(begun)).run(self.connection) == ([], 0)
        self._be_born(worker)

    def _standing(self, queue: str) -> list[_Run]:
        return [job.run for job in self.jobs.values() if job.run is not None and job.queue == queue]

    def _give_back(self, queue: str, runs: list[_Run]) -> list[str]:
        """To the front, in the order of their claims."""
        ids = [run.claimed.id for run in sorted(runs, key=lambda run: run.held)]
        for job_id in ids:
            self.jobs[job_id].status, self.jobs[job_id].run = "queued", None
        self.waiting[queue][:0] = ids
        return ids

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
            jobs = [job for job in self.jobs.values() if job.queue == queue]
            standing = self._standing(queue)
            waiting: Any = read.lrange(f"rq:queue:{queue}", 0, -1)
            assert [job_id.decode() for job_id in waiting] == self.waiting[queue]
            assert _members(read, f"rq:wip:{queue}") == {run.composite for run in standing}
            assert _members(read, f"impetus:leases:{queue}") == {run.claimed.id for run in standing}
            assert _fields(read, f"impetus:tokens:{queue}") == {run.claimed.id: run.held for run in standing}
            deaths = {job.id: str(job.deaths) for job in jobs if job.deaths}
            deaths |= {f"{job.id}:alone": str(job.deaths_alone) for job in jobs if job.deaths_alone}
            assert _fields(read, f"impetus:deaths:{queue}") == deaths
            for registry, statuses in (("finished", {"finished"}), ("failed", {"failed", "stopped"})):
                assert _members(read, f"rq:{registry}:{queue}") == {job.id for job in jobs if job.status in statuses}
        for job in self.jobs.values():
            assert read.hget(f"rq:job:{job.id}", "status") == job.status.encode()
            assert read.xlen(f"rq:results:{job.id}") == len(job.results) <= 1
        for worker in WORKERS:
            books: Any = read.smembers(f"rq:worker:{worker}:executions")
            mine = {run.composite for queue in QUEUES for run in self._standing(queue) if run.worker == worker}
            assert {each.decode() for each in books} == mine
            assert read.hget(f"rq:worker:{worker}", "state") == (b"busy" if mine else b"idle")


def _members(connection: Redis, key: str) -> set[str]:
    members: Any = connection.zrange(key, 0, -1)
    return {member.decode() for member in members}


def _fields(connection: Redis, key: str) -> dict[str, str]:
    fields: Any = connection.hgetall(key)
    return {name.decode(): value.decode() for name, value in fields.items()}


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
            eventually(lambda: listening(connection))
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
