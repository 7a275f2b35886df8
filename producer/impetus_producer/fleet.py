"""What is on a server now: queues, workers, and whether anyone listens. Reads only.

RQ's own counts clean their registries as they count (jobs are moved to "failed" by it); these do not. Source of the
keys: rq 3.0, `registry.py`, `worker_registration.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from . import contract, jobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

_SILENT_AFTER_S = 60.0


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
    others = sorted({_text(key).removeprefix(jobs.queue_key("")) for key in queue_keys} - set(ours))
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
        answers = pipeline.execute()
    now = datetime.now(UTC)
    return tuple(
        _worker(
            key.removeprefix("rq:worker:"), {_text(name): _text(value) for name, value in record.items()}, jobs, now
        )
        for key, record, jobs in zip(keys, answers[::2], answers[1::2], strict=True)
        # The set may name a worker whose record ran out; a worker that said goodbye leaves its record for a minute.
        if record and b"death" not in record and "death" not in record
    )


def _worker(name: str, record: Mapping[str, str], running: int, now: datetime) -> WorkerState:
    queues = tuple(queue for queue in record.get("queues", "").split(",") if queue)
    return WorkerState(
        name, record.get("state", "?"), queues, running, _seconds_since(record.get("last_heartbeat"), now)
    )


def _seconds_since(written: str | None, now: datetime) -> float | None:
    try:
        return max(0.0, (now - datetime.fromisoformat(written or "")).total_seconds())
    except ValueError:
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
