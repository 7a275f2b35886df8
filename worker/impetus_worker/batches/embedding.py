"""Micro-batching: the texts of many embedding jobs, in batches that suit the device.

Two lanes, one for jobs whose caller waits and one for bulk. The first text in an empty lane opens a window; when it
closes, or a batch is full, what is there goes out; texts that come later never extend it. Where the device's measured
cost says that waiting does not pay, there is no window. Within a lane, texts of several batches' worth are sorted by
length together (Infinity, `inference/queue.py`), so that little is padding. One batch runs and one waits behind it, so
the device never waits; a batch of the interactive lane passes the waiting one.
"""

from __future__ import annotations

import base64
import json
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.protocol import Embedded, EmbeddingWork, Rejected

from ..errors import InferenceError, PoisonedJobError
from ..leases.outcomes import Failed, Finished, Outcome, Stopped
from .batcher import Room, provenance
from .cost import CostModel
from .packing import pack
from .quarantine import Quarantine
from .reading import JobReader

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from impetus_backends.protocol import EngineInfo, Event
    from impetus_producer.contract import EmbeddingRequest

    from ..leases.claims import ClaimedJob
    from .reading import ReadJob, TextEncoder

_LOOKAHEAD_S = 4.0
"""Texts for so much of the device's time are taken in ahead, to be sorted together."""
_READING_S = 0.01
"""So long the loop tokenises before it looks at the device and the queues again."""
_LOOKAHEAD_BATCHES = (4, 64)
"""But no fewer batches than this, and no more."""
_LEARNING_RATE = 0.2
"""Of the moving averages that say how much that is."""
_MAX_JOBS_HELD = 2048
_MAX_JOBS_A_CLAIM = 128
DEFAULT_BATCH_TOKENS = {
    "cpu": 1024,
    "numpy": 1024,
    "mlx": 4096,
    "coreml": 4096,
    "coreml-emulated": 1024,
    "simulated": 4096,
}


@dataclass(eq=False, slots=True)
class _OpenJob:
    job: ClaimedJob
    request: EmbeddingRequest
    rows_left: int
    tokens: int
    truncated: int
    vectors: np.ndarray
    started_at: float | None = None
    dropped: bool = False


@dataclass(eq=False, slots=True)
class _Row:
    """One text of one job."""

    owner: _OpenJob
    index: int
    ids: np.ndarray


@dataclass(slots=True)
class _Lane:
    urgent: bool
    pool: list[_Row] = field(default_factory=list)
    planned: deque[list[_Row]] = field(default_factory=deque)
    tokens: int = 0
    """Of all rows in the pool and planned."""
    rows: int = 0
    closes_at: float = 0.0
    in_engine: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    rows: list[_Row]
    lane: _Lane
    suspect: bool


class EmbeddingBatcher:
    """`Batcher` for embedding jobs. `max_wait_s`: how long the first text waits for others to join its batch."""

    def __init__(
        self,
        info: EngineInfo,
        encoder: TextEncoder,
        *,
        worker: str,
        max_batch_texts: int,
        max_batch_tokens: int,
        max_wait_s: float,
        allowed_callbacks: Collection[str] = (),
    ) -> None:
        self._info = info
        self._reader = JobReader(info, encoder, allowed_callbacks)
        same = {"model": info.model, "provenance": provenance(info, worker)}
        self._same_for_all = json.dumps(same, separators=(",", ":"))[1:-1]
        self._max_rows = max_batch_texts
        self._max_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self._jobs: dict[str, _OpenJob] = {}
        self._lanes = (_Lane(urgent=True), _Lane(urgent=False))
        self._running: dict[int, _Batch] = {}
        self._ids = count(1)
        self._quarantine: Quarantine[_Row] = Quarantine()
        self._batches_a_job = 1.0
        self._seconds_a_batch = _LOOKAHEAD_S / 8
        self._cost = CostModel()

    # -- taking in ---------------------------------------------------------------------------------------------------

    def room(self) -> Room:
        unread = len(self._reader)
        held = len(self._jobs) + unread
        interactive = max(0, min(_MAX_JOBS_A_CLAIM, 2 * _MAX_JOBS_HELD - held))
        target = min(max(_LOOKAHEAD_S / max(self._seconds_a_batch, 1e-6), _LOOKAHEAD_BATCHES[0]), _LOOKAHEAD_BATCHES[1])
        pooled = sum(self._batches(lane.rows, lane.tokens) for lane in self._lanes) + unread * self._batches_a_job
        # Refilled in quarters, so that a claim is worth its round trip.
        if held >= _MAX_JOBS_HELD or pooled > 0.75 * target or self._quarantine:
            return Room(interactive=interactive, bulk=0)
        bulk = min(_MAX_JOBS_A_CLAIM, _MAX_JOBS_HELD - held, math.ceil((target - pooled) / self._batches_a_job))
        return Room(interactive=interactive, bulk=bulk)

    def _batches(self, rows: int, tokens: int) -> float:
        """How many full batches these would make, padding aside."""
        return max(rows / self._max_rows, tokens / self._max_tokens)

    def add(self, jobs: Sequence[ClaimedJob]) -> None:
        for job in jobs:
            self._reader.add(job)

    def prepare(self, now: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for read in self._reader.read(_READING_S):
            if isinstance(read, Failed):
                outcomes.append(read)
            else:
                self._open(read, now)
        return outcomes

    def _open(self, read: ReadJob, now: float) -> None:
        size = len(read.texts)
        tokens = sum(len(text.ids) for text in read.texts)
        truncated = sum(text.truncated for text in read.texts)
        vectors = np.empty((size, self._info.dimensions), dtype=np.float32)
        owner = self._jobs[read.job.id] = _OpenJob(read.job, read.request, size, tokens, truncated, vectors)
        lane = self._lanes[0 if read.urgent else 1]
        self._cost.arrived(size, now)
        if not lane.rows:
            lane.closes_at = now + self._max_wait_s if self._cost.waiting_pays(now) else now
        lane.pool.extend(_Row(owner, index, text.ids) for index, text in enumerate(read.texts))
        lane.rows += size
        lane.tokens += tokens
        if not lane.urgent:
            self._batches_a_job += _LEARNING_RATE * (self._batches(size, tokens) - self._batches_a_job)

    # -- giving out --------------------------------------------------------------------------------------------------

    def next_work(self, now: float) -> EmbeddingWork | None:
        if any(batch.suspect for batch in self._running.values()):
            return None
        if self._quarantine:
            return None if self._running else self._send(self._quarantine.next_group(), self._lanes[0], now, True)
        for lane in self._lanes:
            if self._is_ready(lane, now):
                return self._send(self._next_batch(lane), lane, now)
        return None

    def _is_ready(self, lane: _Lane, now: float) -> bool:
        if not lane.rows or lane.in_engine >= 2 or (len(self._running) >= 2 and not lane.urgent):
            return False
        full = lane.tokens >= self._max_tokens or lane.rows >= self._max_rows
        return full or (lane.in_engine == 0 and now >= lane.closes_at)

    def _next_batch(self, lane: _Lane) -> list[_Row]:
        if lane.pool and len(lane.planned) <= 1:
            # The last batch planned is seldom full: it is packed again with what has come since.
            rows = [row for batch in lane.planned for row in batch] + lane.pool
            batches = pack(rows, _length, max_tokens=self._max_tokens, max_rows=self._max_rows)
            lane.planned, lane.pool = deque(batches), []
        batch = lane.planned.popleft()
        lane.rows -= len(batch)
        lane.tokens -= sum(map(_length, batch))
        return batch

    def _send(self, rows: list[_Row], lane: _Lane, now: float, suspect: bool = False) -> EmbeddingWork:
        work = EmbeddingWork(next(self._ids), [row.ids for row in rows], urgent=lane.urgent)
        for row in rows:
            if row.owner.started_at is None:
                row.owner.started_at = now
        lane.in_engine += 1
        self._running[work.id] = _Batch(rows, lane, suspect)
        return work

    def wakes_at(self) -> float | None:
        if self._reader:
            return 0.0
        waiting = [lane.closes_at for lane in self._lanes if lane.rows and not lane.in_engine]
        return min(waiting, default=None)

    # -- what came of it ---------------------------------------------------------------------------------------------

    def absorb(self, event: Event) -> list[Outcome]:
        batch = self._running.pop(event.id, None)
        if batch is None:
            return []
        batch.lane.in_engine -= 1
        if isinstance(event, Embedded):
            return self._completed(batch, event)
        assert isinstance(event, Rejected)
        if len(batch.rows) > 1:
            # One of these spoils the others: halves, until it stands alone.
            half = len(batch.rows) // 2
            self._run_again(batch.lane, batch.rows[half:])
            self._run_again(batch.lane, batch.rows[:half])
            return []
        owner = batch.rows[0].owner
        if owner.dropped:
            return []
        self.drop(owner.job.id)
        return [Failed(owner.job, InferenceError(event.message))]

    def _completed(self, batch: _Batch, event: Embedded) -> list[Outcome]:
        if len(event.vectors) != len(batch.rows):
            raise RuntimeError(
                f"the engine returned {len(event.vectors)} vectors for {len(batch.rows)} texts: "
                "a backend must return one row a text, padding rows cut off"
            )
        self._cost.observe(max(map(_length, batch.rows)) * len(batch.rows), event.device_s)
        self._seconds_a_batch += _LEARNING_RATE * (event.device_s - self._seconds_a_batch)
        done: list[Outcome] = []
        for row, vector in zip(batch.rows, event.vectors, strict=True):
            owner = row.owner
            self._quarantine.cleared(row)
            if owner.dropped:
                continue
            owner.vectors[row.index] = vector
            owner.rows_left -= 1
            if owner.rows_left == 0:
                del self._jobs[owner.job.id]
                done.append(self._finished(owner))
        return done

    def _finished(self, owner: _OpenJob) -> Finished:
        vectors, encoding = owner.vectors, owner.request.encoding_format
        if owner.request.dimensions is not None:
            vectors = vectors[:, : owner.request.dimensions]
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        raw = vectors.astype("<f4", copy=False).tobytes()
        if encoding == "float":
            data = json.dumps(vectors.tolist(), separators=(",", ":"))
        else:
            data = '""' if encoding == "raw" else f'"{base64.b64encode(raw).decode("ascii")}"'
        # Written by hand: json.dumps would look through every character of the block for one to escape.
        result = (
            f'{{"object":"embedding","embeddings":{{"dtype":"float32","shape":[{vectors.shape[0]},{vectors.shape[1]}],'
            f'"encoding":"{encoding}","data":{data}}},'
            f'"usage":{{"prompt_tokens":{owner.tokens},"truncated_texts":{owner.truncated}}},{self._same_for_all}}}'
        )
        return Finished(owner.job, result.encode(), raw if encoding == "raw" else None)

    # -- when things end otherwise -----------------------------------------------------------------------------------

    def drop(self, job_id: str) -> list[int]:
        self._reader.drop(job_id)
        owner = self._jobs.pop(job_id, None)
        if owner is None:
            return []
        owner.dropped = True
        for lane in self._lanes:
            lane.pool = [row for row in lane.pool if row.owner is not owner]
            kept = ([row for row in batch if row.owner is not owner] for batch in lane.planned)
            lane.planned = deque(batch for batch in kept if batch)
            left = [*lane.pool, *(row for batch in lane.planned for row in batch)]
            lane.rows, lane.tokens = len(left), sum(map(_length, left))
        self._quarantine.discard([row for row in self._quarantine.items() if row.owner is owner])
        # Where its rows have neighbours in the engine they run on, and what comes of them is not used.
        return [work for work, batch in self._running.items() if all(row.owner.dropped for row in batch.rows)]

    def interrupt(self, outcome: Failed | Stopped) -> tuple[list[int], list[Outcome]]:
        return self.drop(outcome.job.id), [outcome]

    @property
    def loading(self) -> bool:
        return False

    def in_engine(self, job_id: str) -> bool:
        return any(row.owner.job.id == job_id for batch in self._running.values() for row in batch.rows)

    def started_at(self, job_id: str) -> float | None:
        owner = self._jobs.get(job_id)
        return owner.started_at if owner else None

    def engine_died(self, *, suspect: bool) -> list[Outcome]:
        batches = list(self._running.values())
        self._running.clear()
        for batch in batches:
            batch.lane.in_engine -= 1
        if not suspect:
            for batch in reversed(batches):
                self._run_again(batch.lane, batch.rows)
            return []
        groups = [[row for row in batch.rows if not row.owner.dropped] for batch in batches]
        poisoned: list[Outcome] = []
        for row in self._quarantine.after_death([group for group in groups if group]):
            self.drop(row.owner.job.id)
            poisoned.append(Failed(row.owner.job, _poison(row)))
        return poisoned

    def _run_again(self, lane: _Lane, rows: list[_Row]) -> None:
        """As the lane's next batch."""
        if rows := [row for row in rows if not row.owner.dropped]:
            lane.planned.appendleft(rows)
            lane.rows += len(rows)
            lane.tokens += sum(map(_length, rows))


def _poison(row: _Row) -> PoisonedJobError:
    return PoisonedJobError(f"input: the engine died each time it ran item {row.index}, and nothing beside it")


def _length(row: _Row) -> int:
    return len(row.ids)
