"""What a worker does to jobs in Redis, one script each: claim, finish, seal, renew, recover.

Every script touches just the fields needed and is one round trip, however many jobs. RQ's keys and fields are those
of rq 3.0; `tests/worker/test_claims.py` compares them with what RQ itself writes. Knows Redis and the layout of RQ's
keys; knows nothing of batches, models or engines.
"""

from __future__ import annotations

import base64
import time
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

from impetus_producer.contract import VECTORS_FIELD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis import Redis
    from redis.commands.core import Script

T = TypeVar("T")

SEAL_S = 180
"""Longer than RQ's ending of a job takes, callbacks of 60 s among it."""
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
_DEFAULT_TIMEOUT_S = 180
"""RQ's own, for jobs that name none (`Queue.DEFAULT_TIMEOUT`)."""
_REGISTRY_MARGIN_S = 24 * 3600
"""RQ's own cleanup, which `rq info` runs too, fails a started job once its registry score has passed. Ours puts it
back as soon as its lease has run out, so the score leaves it a day to do so."""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that is this worker's for as long as it renews the lease. `fields` is RQ's hash before, undecoded."""

    id: str
    execution_id: str
    queue: str
    fields: dict[bytes, bytes] = field(repr=False)
    claimed_at: float
    """Epoch seconds."""

    @property
    def suspect(self) -> bool:
        """Whether it was in flight when a worker died, so that nothing may run beside it."""
        return self.fields.get(b"impetus_suspect") == b"1"

    @property
    def deaths_alone(self) -> int:
        """How many workers died with this job and nothing else in flight."""
        deaths = self.fields.get(b"impetus_deaths", b"")
        return int(deaths) if deaths.isdigit() else 0

    @property
    def timeout_s(self) -> int | None:
        """RQ's time limit, counted here from when the engine first ran any of it; None for none."""
        try:
            timeout_s = int(self.fields.get(b"timeout") or _DEFAULT_TIMEOUT_S)
        except ValueError:
            timeout_s = _DEFAULT_TIMEOUT_S
        return timeout_s if timeout_s > 0 else None


class Verb(StrEnum):
    FINISH = "finish"
    FAIL = "fail"
    ABORT = "abort"
    """Fails it whatever it has of dependents."""
    RETURN = "return"


class Ended(StrEnum):
    """What came of an ending."""

    DONE = "1"
    LEASE_LOST = "0"
    HAS_DEPENDENTS = "2"


@dataclass(frozen=True, slots=True)
class Ending:
    """How one job ends: a result (the serializer's bytes), a reason, or back to the queue."""

    job: ClaimedJob
    verb: Verb
    payload: bytes = b""
    ttl_s: int = -1
    vectors: bytes | None = None
    """Stored beside the result, as the field `VECTORS_FIELD` of its entry."""


@dataclass(frozen=True, slots=True)
class Claim:
    suspended: bool
    drain: bool
    """A suspect comes next, and waits for a worker with nothing in flight."""
    jobs: list[ClaimedJob]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One run of a script: what to send, and what its answer means."""

    script: Script
    keys: list[str]
    arguments: list[Any]
    read: Callable[[Any], T]

    def run(self) -> T:
        """Sends it and waits."""
        return self.read(self.script(keys=self.keys, args=self.arguments))


class Claims:
    """One worker's hold on its jobs. Safe to share between threads, as the client is."""

    def __init__(self, connection: Redis, worker: str, lease_s: int) -> None:
        self._connection = connection
        self._worker = worker
        self._lease_s = lease_s
        self._claim = connection.register_script(lua_source("claim"))
        self._finish = connection.register_script(lua_source("finish"))
        self._renew = connection.register_script(lua_source("renew"))
        self._seal = connection.register_script(lua_source("seal"))
        self._recover = connection.register_script(lua_source("recover"))

    def claim(self, queues: Sequence[str], max_jobs: int, max_bytes: int, *, idle: bool = True) -> Claim:
        """Takes up to `max_jobs` jobs, from the first queue while it has any; at most about `max_bytes` of payload.

        A suspect is taken only by an `idle` worker, one that has no job in flight, and alone.
        """
        return self.claiming(queues, max_jobs, max_bytes, idle=idle).run()

    def claiming(self, queues: Sequence[str], max_jobs: int, max_bytes: int, *, idle: bool) -> Call[Claim]:
        """`claim`, not yet sent."""
        now = time.time()
        arguments: list[Any] = [
            self._worker, _iso(now), repr(now), self._lease_s, self._score(now), max_jobs, max_bytes, uuid4().hex[:20],
            int(idle), *queues,
        ]  # fmt: skip

        def read(reply: Any) -> Claim:
            jobs = [
                ClaimedJob(
                    id=job_id.decode(),
                    execution_id=execution.decode(),
                    queue=queues[int(position) - 1],
                    fields=dict(zip(fields[::2], fields[1::2], strict=True)),
                    claimed_at=now,
                )
                for job_id, execution, position, fields in reply[1:]
            ]
            return Claim(suspended=reply[0] == 1, drain=reply[0] == 2, jobs=jobs)

        return Call(self._claim, [f"rq:queue:{queue}" for queue in queues], arguments, read)

    def finish(self, endings: Iterable[Ending]) -> list[Ended]:
        """Ends jobs in one transaction, each only while its lease holds."""
        return self.finishing(endings).run()

    def finishing(self, endings: Iterable[Ending]) -> Call[list[Ended]]:
        """`finish`, not yet sent."""
        now = time.time()
        payloads: list[bytes] = []
        arguments: list[Any] = []
        for ending in endings:
            job, payload, vectors = ending.job, _payload(ending), ending.vectors
            payloads += (payload, vectors or b"")
            arguments += (
                job.id, job.execution_id, job.queue, ending.verb.value, len(payload),
                -1 if vectors is None else len(vectors), ending.ttl_s, repr(job.claimed_at),
            )  # fmt: skip
        # Joined, because the client sends each large argument on its own.
        head = [self._worker, _iso(now), repr(now), int(now), VECTORS_FIELD, b"".join(payloads)]
        return Call(self._finish, [], [*head, *arguments], lambda codes: [Ended(str(code)) for code in codes])

    def renew(self, jobs: Iterable[ClaimedJob]) -> list[str]:
        """Extends the leases; returns the ids of jobs that are no longer this worker's."""
        now = time.time()
        arguments: list[Any] = [self._worker, _iso(now), repr(now), self._lease_s, self._score(now)]
        for job in jobs:
            arguments += (job.id, job.execution_id, job.queue)
        lost: Any = self._renew(args=arguments)
        return [job_id.decode() for job_id in lost]

    def seal(self, job: ClaimedJob) -> bool:
        """Whether the lease on this job holds; if so it now does for `SEAL_S`, for an ending of many round trips."""
        return bool(self._seal(args=[job.id, job.execution_id, SEAL_S]))

    def recover(self, queue: str) -> list[str]:
        """Puts the queue's jobs that dead workers held back at its front; returns their ids."""
        ids: Any = self._recover(args=[queue])
        return [job_id.decode() for job_id in ids]

    def abandon(self, worker: str) -> None:
        """Ends at once all leases of a worker that is known to be dead, and takes its record away."""
        key = f"rq:worker:{worker}"
        held: Any = self._connection.smembers(f"{key}:executions")
        queues: Any = self._connection.hget(key, "queues") or b""
        with self._connection.pipeline(transaction=True) as pipeline:
            for composite in held:
                pipeline.delete(f"rq:execution:{composite.decode()}")
            pipeline.srem("rq:workers", key)
            for queue in queues.decode().split(","):
                pipeline.srem(f"rq:workers:{queue}", key)
            pipeline.delete(key, f"{key}:executions")
            pipeline.execute()

    def _score(self, now: float) -> int:
        return int(now) + self._lease_s + _REGISTRY_MARGIN_S


def _payload(ending: Ending) -> bytes:
    """As RQ's `Result.serialize` writes it: base64, a reason deflated first."""
    if ending.verb is Verb.RETURN:
        return b""
    return base64.b64encode(ending.payload if ending.verb is Verb.FINISH else zlib.compress(ending.payload))


def _iso(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime(_TIME_FORMAT)


def lua_source(name: str) -> str:
    """One of the scripts in `lua/`."""
    return (resources.files(__package__) / "lua" / f"{name}.lua").read_text()
