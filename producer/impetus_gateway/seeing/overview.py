"""What the dashboard shows: the fleet as it was seen last, rates over the last minutes, jobs, and failures."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from impetus_producer import contract
from impetus_producer.shown import printable, shortened
from impetus_producer.watching.records import failed_records, open_records

if TYPE_CHECKING:
    from impetus_producer.batches.objects import Batch
    from impetus_producer.batches.store import BatchStore
    from impetus_producer.watching.fleet import Fleet, QueueState, WorkerState
    from impetus_producer.watching.records import JobRecord

    from .metrics import Metrics
    from .watch import Watch

_POINTS = 180
_SMOOTHED = 6
_JOBS_A_QUEUE, _FAILURES, _BATCHES = 8, 10, 8
_SENTENCE_CHARACTERS = 500


class Overview:
    """Of one gateway, for all who look at it. Notes a point of its rates at each look of the watch."""

    def __init__(self, watch: Watch, metrics: Metrics, store: BatchStore) -> None:
        self._store = store
        self._watch = watch
        self._metrics = metrics
        self._rates: deque[dict[str, float]] = deque(maxlen=_POINTS)
        self._noted: deque[tuple[float, int, int, dict[str, int]]] = deque(maxlen=_SMOOTHED)
        """The last looks: when, texts and tokens through here until then, and by worker the jobs that it had ended."""
        self._made: tuple[Fleet | None, dict[str, Any]] | None = None
        self._making = asyncio.Lock()
        watch.on_look = self._note

    def _note(self, fleet: Fleet | None) -> None:
        ended = {} if fleet is None else {each.name: each.ended for each in fleet.workers}
        now = (time.monotonic(), self._metrics.texts, self._metrics.tokens, ended)
        if self._noted:
            at, texts, tokens, then = self._noted[-1]
            past_s = max(now[0] - at, 1e-3)
            jobs = sum(_since(then, name, count) for name, count in ended.items())
            self._rates.append(
                {"jobs": jobs / past_s, "texts": (now[1] - texts) / past_s, "tokens": (now[2] - tokens) / past_s}
            )
        self._noted.append(now)

    def _per_s(self, worker: WorkerState) -> float:
        """Jobs that it ended a second, of late."""
        first = self._noted[0]
        return _since(first[3], worker.name, worker.ended) / max(time.monotonic() - first[0], 1.0)

    async def now(self) -> dict[str, Any]:
        """As plain data; read once a look, however many ask."""
        async with self._making:
            fleet = self._watch.fleet
            if self._made is None or self._made[0] is not fleet:
                self._made = (fleet, await self._read(fleet))
            return self._made[1] | {"rates": list(self._rates)}

    async def _read(self, fleet: Fleet | None) -> dict[str, Any]:
        if fleet is None:
            return {"reached": False}
        ask = asyncio.to_thread
        at = [server.connection for server in self._watch.reached]
        opened = [record for each in at for record in await ask(open_records, each, _JOBS_A_QUEUE)]
        failed = [failure for each in at for failure in await ask(failed_records, each, _FAILURES)]
        failed = sorted(failed, key=lambda failure: failure[0].ended_at, reverse=True)[:_FAILURES]
        batches, _ = await ask(partial(self._store.batches, limit=_BATCHES))
        return {
            "reached": True,
            "suspended": fleet.suspended,
            "workers": [_worker(each, fleet) | {"per_s": self._per_s(each)} for each in fleet.workers],
            "workers_left_out": fleet.workers_left_out,
            "queues": [_queue(each, fleet) for each in fleet.ours()],
            "jobs": [_job(each) for each in opened],
            "batches": [_batch(each) for each in batches],
            "failures": [_job(record) | {"sentence": _said(sentence)} for record, sentence in failed],
        }


def _since(then: dict[str, int], worker: str, ended: int) -> int:
    """How many jobs it ended since. Who was not there ended his at some other time."""
    return max(0, ended - then[worker]) if worker in then else 0


def _worker(worker: WorkerState, fleet: Fleet) -> dict[str, Any]:
    state, why = _standing(worker, fleet)
    return {
        "name": _said(worker.name),
        "role": worker.role or ", ".join(map(_said, worker.queues)),
        "machine": _said(worker.machine),
        "device": _said(worker.device),
        "model": _said(worker.model),
        "jobs": worker.jobs,
        "engine_deaths": worker.engine_deaths,
        "state": state,
        "why": _said(why),
    }


def _standing(worker: WorkerState, fleet: Fleet) -> tuple[str, str]:
    """A word, and why it is so."""
    if not worker.alive:
        silent = "" if worker.silent_s is None else f" for {worker.silent_s:.0f} s"
        return "silent", f"it gave no sign of life{silent}"
    if not worker.serving:
        return "loading", "its engine loads its model, or is stuck"
    if fleet.suspended:
        return "suspended", "all workers were told to take no jobs"
    if worker.standing_by:
        return "standing by", "a worker with a Neural Engine serves embeddings"
    return "serving", worker.note


def _queue(queue: QueueState, fleet: Fleet) -> dict[str, Any]:
    return {
        "name": queue.name,
        "waiting": queue.waiting,
        "running": queue.running,
        "failed": queue.failed,
        "oldest_s": None if queue.oldest_s is None else round(queue.oldest_s, 1),
        "attended": queue.name not in fleet.unattended(),
    }


def _job(record: JobRecord) -> dict[str, Any]:
    owner, endpoint = record.meta.get("owner"), record.meta.get("endpoint")
    return {
        "id": _said(record.job_id),
        "queue": _said(record.queue),
        "bulk": record.queue in contract.BULK_QUEUES,
        "status": record.stands,
        "owner": _said(owner) if isinstance(owner, str) else "",
        "endpoint": _said(endpoint) if isinstance(endpoint, str) else "",
        "at": record.ended_at or record.started_at or record.created_at,
    }


def _batch(batch: Batch) -> dict[str, Any]:
    counts = batch.request_counts
    return {
        "id": batch.id,
        "status": batch.status,
        "over": batch.over,
        "endpoint": batch.endpoint,
        "owner": _said(batch.owner),
        "total": counts.total,
        "completed": counts.completed,
        "failed": counts.failed,
    }


def _said(text: str) -> str:
    """What others wrote."""
    return printable(shortened(text, _SENTENCE_CHARACTERS))
