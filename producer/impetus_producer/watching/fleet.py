"""What is on a server now: queues, workers, and whether anyone listens. Reads only.

RQ's own counts clean their registries as they count (jobs are moved to "failed" by it); these do not. Source of the
keys: rq 3.0, `registry.py`, `worker_registration.py`. Times are the server's: what this machine's clock says, or a
worker's, decides nothing about our workers. What a key of a wrong type should have said is unknown.

Whoever may write to the server may name queues and workers without end, so only so many are read, and so much of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from .. import contract
from ..enqueueing import jobs
from ..servers.answers import known_answers
from ..servers.troubles import server_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from redis import Redis

_SILENT_AFTER_S = 60.0
_WORKER_KEY = "rq:worker:"
MAX_QUEUES = 1000
MAX_WORKERS = 1000
_REGISTERED = ("state", "queues", "last_heartbeat", "death", "successful_job_count", "failed_job_count")
_MAX_RECORD_BYTES = 65_536
_MAX_VALUE_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many jobs are where; None where a key of a wrong type lies in the place."""

    name: str
    waiting: int | None
    running: int | None
    finished: int | None
    """Ended well, with a result that Redis still keeps."""
    failed: int | None
    """Ended badly, and still kept."""
    oldest_s: float | None = None
    """How long the first of those that wait has waited, by its own word; None where none does, or it does not say."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    name: str
    state: str
    """RQ's word: started, idle, busy or suspended."""
    queues: tuple[str, ...]
    jobs: int | None
    """How many it runs now."""
    silent_s: float | None
    """Since its last sign of life, by the server's clock."""
    alive: bool
    """Whether it renews its record. A stock RQ worker has none: whether it gave a sign of life in the last minute."""
    device: str = ""
    """Where it runs its model, such as `ane (coreml)`; empty if it does not say."""
    machine: str = ""
    """The chip."""
    role: str = ""
    """`embedding` or `generation`; empty if it does not say."""
    model: str = ""
    """The name of the one that it serves by default."""
    aliases: tuple[str, ...] = ()
    """Every name by which a request may ask for one of its models."""
    more_models: tuple[contract.ServedModel, ...] = ()
    """Those that it serves besides, each with its own names."""
    note: str = ""
    """What there is to know of its backend."""
    memory_bytes: int | None = None
    """What its engine has; None where it does not say."""
    memory_limit_bytes: int | None = None
    """What it may have."""
    since: str = ""
    """When it started, by its own clock, ISO 8601."""
    serving: bool = True
    """False while its engine loads its model, or is stuck."""
    engine_deaths: int = 0
    """How often its engine died since the worker started."""
    ended: int = 0
    """How many jobs it has ended since it started, well or not."""

    @property
    def standing_by(self) -> bool:
        """Whether it leaves embeddings to a worker with a Neural Engine."""
        return contract.STANDBY_QUEUE in self.queues

    def serves(self, queue: str) -> bool:
        """Whether it takes jobs of this queue now."""
        return self.alive and self.serving and queue in self.queues


@dataclass(frozen=True, slots=True)
class Fleet:
    queues: tuple[QueueState, ...]
    workers: tuple[WorkerState, ...]
    suspended: bool
    """Somebody ran `rq suspend`: workers finish what they run and take nothing."""
    queues_left_out: int = 0
    """How many there are beyond the first `MAX_QUEUES`; the contract's are always among those."""
    workers_left_out: int = 0
    """How many names of workers there are beyond the first `MAX_WORKERS`."""

    def ours(self) -> tuple[QueueState, ...]:
        """The contract's queues."""
        names = {name for names in contract.ROLE_QUEUES.values() for name in names}
        return tuple(queue for queue in self.queues if queue.name in names)

    def listening_to(self, queue: str) -> bool:
        return any(worker.alive and queue in worker.queues for worker in self.workers)

    def unattended(self) -> list[str]:
        """The contract's queues that no live worker listens to, those of optional roles where jobs wait there. None
        where that cannot be told, as workers were left out.
        """
        if self.workers_left_out:
            return []
        needed = {
            queue.name
            for queue in self.ours()
            if queue.waiting or contract.role_of_queue(queue.name) not in contract.OPTIONAL_ROLES
        }
        names = [name for names in contract.ROLE_QUEUES.values() for name in names]
        return [name for name in names if name in needed and not self.listening_to(name)]


def merged(fleets: Sequence[Fleet]) -> Fleet:
    """What is on several servers together. A worker that listens to more than one is there once."""
    if len(fleets) == 1:
        return fleets[0]
    queues: dict[str, QueueState] = {}
    workers: dict[str, WorkerState] = {}
    for fleet in fleets:
        for queue in fleet.queues:
            queues[queue.name] = _both_queues(queues[queue.name], queue) if queue.name in queues else queue
        for worker in fleet.workers:
            workers[worker.name] = _both_workers(workers[worker.name], worker) if worker.name in workers else worker
    return Fleet(
        tuple(queues.values()),
        tuple(workers.values()),
        suspended=all(fleet.suspended for fleet in fleets),
        queues_left_out=sum(fleet.queues_left_out for fleet in fleets),
        workers_left_out=sum(fleet.workers_left_out for fleet in fleets),
    )


def _both_queues(one: QueueState, other: QueueState) -> QueueState:
    waited = [each.oldest_s for each in (one, other) if each.oldest_s is not None]
    return QueueState(
        one.name,
        _sum(one.waiting, other.waiting),
        _sum(one.running, other.running),
        _sum(one.finished, other.finished),
        _sum(one.failed, other.failed),
        max(waited, default=None),
    )


def _both_workers(one: WorkerState, other: WorkerState) -> WorkerState:
    seen = one if one.alive or not other.alive else other
    return replace(seen, jobs=_sum(one.jobs, other.jobs), ended=one.ended + other.ended)


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def read_fleet(connection: Redis) -> Fleet:
    """The state of all queues and workers, in four round trips. Raises a `ServerError`."""
    with server_errors(connection):
        return _read(connection)


def _read(connection: Redis) -> Fleet:
    with connection.pipeline(transaction=False) as pipeline:
        # Gives all of a set that is no larger.
        pipeline.srandmember("rq:queues", MAX_QUEUES)
        pipeline.scard("rq:queues")
        pipeline.srandmember("rq:workers", MAX_WORKERS)
        pipeline.scard("rq:workers")
        pipeline.exists("rq:suspended")
        pipeline.time()
        said = known_answers(pipeline.execute(raise_on_error=False))
    queue_keys, queue_count, worker_keys, worker_count, suspended, time = said
    now_s = time[0] + time[1] / 1e6
    ours = [name for names in contract.ROLE_QUEUES.values() for name in names]
    known = {_text(key).removeprefix(jobs.queue_key("")) for key in queue_keys or ()}
    others = sorted(known - {*ours, contract.STANDBY_QUEUE})[: MAX_QUEUES - len(ours)]
    workers = sorted(_text(key) for key in worker_keys or ())
    return Fleet(
        queues=_read_queues(connection, ours + others, now_s),
        workers=_read_workers(connection, workers, now_s),
        suspended=bool(suspended),
        queues_left_out=_left_out(queue_count, known, ours + others),
        workers_left_out=max(0, int(worker_count or 0) - len(workers)),
    )


def _left_out(count: int | None, drawn: set[str], shown: list[str]) -> int:
    """How many queues are not shown, going by those that were drawn."""
    return max(0, int(count or 0) - len(drawn)) + len(drawn.difference(shown, (contract.STANDBY_QUEUE,)))


def _read_queues(connection: Redis, names: Sequence[str], now_s: float) -> tuple[QueueState, ...]:
    with connection.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.llen(jobs.queue_key(name))
            pipeline.zcard(f"rq:wip:{name}")
            for registry in ("finished", "failed"):
                pipeline.zcard(f"rq:{registry}:{name}")
                # What ran out stays until a worker cleans the registry; a score below 0 never runs out.
                pipeline.zcount(f"rq:{registry}:{name}", 0, now_s)
            pipeline.lrange(jobs.queue_key(name), 0, 0)
        answers = iter(known_answers(pipeline.execute(raise_on_error=False)))
    states, firsts = [], []
    for name in names:
        states.append(QueueState(name, next(answers), next(answers), _kept(answers), _kept(answers)))
        firsts.append(_text((next(answers) or [b""])[0])[:_MAX_VALUE_CHARACTERS])
    waited = _waited_s(connection, firsts, now_s)
    return tuple(replace(state, oldest_s=waited_s) for state, waited_s in zip(states, waited, strict=True))


def _waited_s(connection: Redis, job_ids: Sequence[str], now_s: float) -> list[float | None]:
    with connection.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hget(jobs.job_key(job_id), "enqueued_at")
        return [
            _seconds_since(_text(at or "")[:_MAX_VALUE_CHARACTERS], now_s)
            for at in known_answers(pipeline.execute(raise_on_error=False))
        ]


def _kept(answers: Iterator[Any]) -> int | None:
    whole, over = next(answers), next(answers)
    return None if whole is None or over is None else int(whole) - int(over)


def _read_workers(connection: Redis, keys: Sequence[str], now_s: float) -> tuple[WorkerState, ...]:
    with connection.pipeline(transaction=False) as pipeline:
        for key in keys:
            own = contract.WORKER_RECORD_KEY + key.removeprefix(_WORKER_KEY)
            pipeline.hmget(key, _REGISTERED)
            pipeline.scard(f"{key}:executions")
            pipeline.getrange(own, 0, _MAX_RECORD_BYTES)
            pipeline.pttl(own)
        answers = known_answers(pipeline.execute(raise_on_error=False))
    return tuple(
        _worker(key.removeprefix(_WORKER_KEY), registered, running, own, left_ms, now_s)
        for key, said, running, own, left_ms in zip(
            keys, answers[::4], answers[1::4], answers[2::4], answers[3::4], strict=True
        )
        for registered in (_registered(said),)
        # The set may name a worker whose record ran out; a worker that said goodbye leaves its record for a minute.
        # Whatever the others go by is shown, also where there is no more to it.
        if said is None or (registered and "death" not in registered) or _counts(own, left_ms)
    )


def _counts(record: Any, left_ms: Any) -> bool:
    """Whether workers go by this record: one without an end is nobody's who lives."""
    return bool(record) and isinstance(left_ms, int) and left_ms > 0


def _registered(said: Sequence[Any] | None) -> dict[str, str]:
    """What is there of `_REGISTERED`."""
    pairs = zip(_REGISTERED, said or (), strict=False)
    return {name: _text(value)[:_MAX_VALUE_CHARACTERS] for name, value in pairs if value is not None}


def _worker(
    name: str, registered: Mapping[str, str], running: int | None, said: Any, left_ms: int, now_s: float
) -> WorkerState:
    state = WorkerState(
        name=name,
        state=registered.get("state", "?"),
        queues=tuple(queue for queue in registered.get("queues", "").split(",") if queue),
        jobs=running,
        silent_s=None,
        alive=False,
        ended=sum(_count(registered.get(name, "")) for name in ("successful_job_count", "failed_job_count")),
    )
    try:
        own = contract.WorkerRecord.model_validate_json(said if _counts(said, left_ms) else b"")
    except ValidationError:  # a stock RQ worker's, or one that is just starting, or is gone
        silent_s = _seconds_since(registered.get("last_heartbeat"), now_s)
        return replace(state, silent_s=silent_s, alive=silent_s is not None and silent_s < _SILENT_AFTER_S)
    return replace(
        state,
        silent_s=max(0.0, own.ttl_s - left_ms / 1000),
        alive=True,
        device=f"{own.device} ({own.backend})",
        machine=own.machine,
        role=own.role,
        model=own.model,
        aliases=own.aliases,
        more_models=own.more_models,
        note=own.note or "",
        memory_bytes=own.memory_bytes,
        memory_limit_bytes=own.memory_limit_bytes,
        since=own.since,
        serving=own.serving,
        engine_deaths=own.engine_deaths,
    )


def _count(written: str) -> int:
    return int(written) if written.isascii() and written.isdecimal() and len(written) < 16 else 0


def _seconds_since(written: str | None, now_s: float) -> float | None:
    try:
        at = datetime.fromisoformat(written or "")
    except ValueError:
        return None
    # RQ writes UTC, in some versions without saying so.
    return max(0.0, now_s - (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
