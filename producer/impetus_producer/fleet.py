"""What is on a server now: queues, workers, and whether anyone listens. Reads only.

RQ's own counts clean their registries as they count (jobs are moved to "failed" by it); these do not. Source of the
keys: rq 3.0, `registry.py`, `worker_registration.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from . import contract, jobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

_SILENT_AFTER_S = 60.0
_WORKER_KEY = "rq:worker:"


@dataclass(frozen=True, slots=True)
class QueueState:
    name: str
    waiting: int
    running: int
    finished: int
    """Ended well, with a result that Redis still keeps."""
    failed: int
    """Ended badly, and still kept."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    name: str
    state: str
    """RQ's word: started, idle, busy or suspended."""
    queues: tuple[str, ...]
    jobs: int
    """How many it runs now."""
    silent_s: float | None
    """Since its last sign of life."""
    device: str = ""
    """Where it runs its model, such as `ane (coreml)`; empty if it does not say."""
    machine: str = ""
    """The chip."""
    serving: bool = True
    """False while its engine loads its model, or is stuck."""
    engine_deaths: int = 0
    """How often its engine died since the worker started."""

    @property
    def alive(self) -> bool:
        """Whether it gave a sign of life in the last minute. After a kill its record stays for several."""
        return self.silent_s is not None and self.silent_s < _SILENT_AFTER_S


@dataclass(frozen=True, slots=True)
class Fleet:
    queues: tuple[QueueState, ...]
    workers: tuple[WorkerState, ...]
    suspended: bool
    """Somebody ran `rq suspend`: workers finish what they run and take nothing."""

    def listening_to(self, queue: str) -> bool:
        return any(worker.alive and queue in worker.queues for worker in self.workers)

    def unattended(self) -> list[str]:
        """The contract's queues that no live worker listens to."""
        return [name for names in contract.ROLE_QUEUES.values() for name in names if not self.listening_to(name)]


def read_fleet(connection: Redis) -> Fleet:
    """The state of all queues and workers, in three round trips."""
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.smembers("rq:queues")
        pipeline.smembers("rq:workers")
        pipeline.exists("rq:suspended")
        queue_keys, worker_keys, suspended = pipeline.execute()
    ours = [name for names in contract.ROLE_QUEUES.values() for name in names]
    known = {_text(key).removeprefix(jobs.queue_key("")) for key in queue_keys}
    others = sorted(known - {*ours, contract.STANDBY_QUEUE})
    return Fleet(
        queues=_read_queues(connection, ours + others),
        workers=_read_workers(connection, sorted(_text(key) for key in worker_keys)),
        suspended=bool(suspended),
    )


def _read_queues(connection: Redis, names: Sequence[str]) -> tuple[QueueState, ...]:
    now = time.time()
    with connection.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.llen(jobs.queue_key(name))
            pipeline.zcard(f"rq:wip:{name}")
            for registry in ("finished", "failed"):
                pipeline.zcard(f"rq:{registry}:{name}")
                # What ran out stays until a worker cleans the registry; a score below 0 never runs out.
                pipeline.zcount(f"rq:{registry}:{name}", 0, now)
        answers = iter(pipeline.execute())
    return tuple(
        QueueState(name, next(answers), next(answers), next(answers) - next(answers), next(answers) - next(answers))
        for name in names
    )


def _read_workers(connection: Redis, keys: Sequence[str]) -> tuple[WorkerState, ...]:
    with connection.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
            pipeline.scard(f"{key}:executions")
            pipeline.get(contract.WORKER_RECORD_KEY + key.removeprefix(_WORKER_KEY))
        answers = pipeline.execute()
    now = datetime.now(UTC)
    return tuple(
        _worker(
            key.removeprefix(_WORKER_KEY),
            {_text(name): _text(value) for name, value in record.items()},
            jobs,
            said,
            now,
        )
        for key, record, jobs, said in zip(keys, answers[::3], answers[1::3], answers[2::3], strict=True)
        # The set may name a worker whose record ran out; a worker that said goodbye leaves its record for a minute.
        if record and b"death" not in record and "death" not in record
    )


def _worker(name: str, record: Mapping[str, str], running: int, said: Any, now: datetime) -> WorkerState:
    try:
        own = contract.WorkerRecord.model_validate_json(said or b"")
        device, machine = f"{own.device} ({own.backend})", own.machine
        serving, engine_deaths = own.serving, own.engine_deaths
    except ValidationError:  # a stock RQ worker's, or one that is just starting
        device, machine, serving, engine_deaths = "", "", True, 0
    return WorkerState(
        name=name,
        state=record.get("state", "?"),
        queues=tuple(queue for queue in record.get("queues", "").split(",") if queue),
        jobs=running,
        silent_s=_seconds_since(record.get("last_heartbeat"), now),
        device=device,
        machine=machine,
        serving=serving,
        engine_deaths=engine_deaths,
    )


def _seconds_since(written: str | None, now: datetime) -> float | None:
    try:
        return max(0.0, (now - datetime.fromisoformat(written or "")).total_seconds())
    except ValueError:
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
