"""What a server keeps of single jobs: where they stand, who enqueued them, and what those that failed say. Reads only.

Source of the layout: rq 3.0, `Job.to_dict`, `FailedJobRegistry`. Whoever may write to the server may write anything
there: so much is read of it, and what is none of RQ's is passed over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .. import contract
from ..enqueueing import jobs
from ..errors import UnreadableResultError
from ..servers.answers import known_answers
from ..servers.troubles import server_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

_FIELDS = ("status", "origin", "created_at", "started_at", "ended_at", "worker_name", "meta")
_MAX_META_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job, as RQ's hash has it. Times are ISO 8601, empty where they are not known."""

    job_id: str
    status: str
    """RQ's word for it."""
    queue: str
    created_at: str = ""
    started_at: str = ""
    ended_at: str = ""
    worker: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What its enqueuer noted, RQ's `job.meta`."""

    @property
    def role(self) -> str:
        """`embedding`, `generation` or `rerank`."""
        return contract.role_of_queue(self.queue)

    @property
    def stands(self) -> str:
        """The status in plainer words: queued, running, finished, failed, cancelled, deferred or scheduled."""
        return {"canceled": "cancelled", "stopped": "cancelled", "started": "running"}.get(self.status, self.status)

    @property
    def over(self) -> bool:
        return self.status in ("finished", "failed", "canceled", "stopped")


def read_record(connection: Redis, job_id: str) -> JobRecord | None:
    """None if there is no such job. Raises a `ServerError`."""
    return _read(connection, [job_id])[0]


def open_records(connection: Redis, most: int) -> list[JobRecord]:
    """Jobs of the contract's queues that are not over, up to so many of each queue: first those that run, then those
    that wait, in their order.
    """
    queues = [name for names in contract.ROLE_QUEUES.values() for name in names]
    with server_errors(connection), connection.pipeline(transaction=False) as pipeline:
        for queue in queues:
            pipeline.zrange(f"rq:wip:{queue}", 0, most - 1)
        for queue in queues:
            pipeline.lrange(jobs.queue_key(queue), 0, most - 1)
        answers = known_answers(pipeline.execute(raise_on_error=False))
    # What runs is named with its execution.
    ids = [each.decode(errors="replace").partition(":")[0] for answer in answers for each in answer or ()]
    return [each for each in _read(connection, ids) if each is not None and not each.over]


def failed_records(connection: Redis, most: int) -> list[tuple[JobRecord, str]]:
    """The jobs of the contract's queues that failed last, with the sentence that each failed with, the latest first."""
    with server_errors(connection), connection.pipeline(transaction=False) as pipeline:
        for queue in (name for names in contract.ROLE_QUEUES.values() for name in names):
            pipeline.zrange(f"rq:failed:{queue}", -most, -1)
        ids = [
            each.decode(errors="replace")
            for answer in known_answers(pipeline.execute(raise_on_error=False))
            for each in answer or ()
        ]
    records = [each for each in _read(connection, ids) if each is not None and each.status == "failed"]
    latest = sorted(records, key=lambda record: record.ended_at, reverse=True)[:most]
    with server_errors(connection), connection.pipeline(transaction=False) as pipeline:
        for record in latest:
            pipeline.xrevrange(jobs.results_key(record.job_id), count=1)
        ends = known_answers(pipeline.execute(raise_on_error=False))
    return [(record, _sentence(record.job_id, end)) for record, end in zip(latest, ends, strict=True)]


def _read(connection: Redis, job_ids: Sequence[str]) -> list[JobRecord | None]:
    with server_errors(connection), connection.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hmget(jobs.job_key(job_id), _FIELDS)
        answers = known_answers(pipeline.execute(raise_on_error=False))
    return [_record(job_id, said) for job_id, said in zip(job_ids, answers, strict=True)]


def _record(job_id: str, said: Sequence[bytes | None] | None) -> JobRecord | None:
    if not said or said[0] is None or said[1] is None:
        return None
    status, queue, created, started, ended, worker = (
        (each or b"").decode(errors="replace")[:1000] for each in said[:-1]
    )
    return JobRecord(job_id, status, queue, _time(created), _time(started), _time(ended), worker, meta=_meta(said[-1]))


def _time(written: str) -> str:
    try:
        datetime.fromisoformat(written)
    except ValueError:
        return ""
    return written


def _meta(said: bytes | None) -> dict[str, Any]:
    if said is None or len(said) > _MAX_META_BYTES:
        return {}
    try:
        meta = json.loads(said)
    except (ValueError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _sentence(job_id: str, entries: Any) -> str:
    if not entries:
        return ""
    try:
        outcome = jobs.decode_outcome(job_id, entries[0][1])
    except UnreadableResultError as error:
        return str(error)
    return "" if outcome.error is None else str(outcome.error)
