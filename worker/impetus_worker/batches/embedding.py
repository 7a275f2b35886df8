"""Micro-batching: the texts of many embedding or rerank jobs, in batches that suit the device.

Two lanes, one for jobs whose caller waits and one for bulk. The first text in an empty lane opens a window; when it
closes, or a batch is full, what is there goes out; texts that come later never extend it. Where the device's measured
cost says that waiting does not pay, there is no window. One batch runs and one waits behind it, so the device never
waits; a batch of the interactive lane passes the waiting one.

While rows are suspected of killing the engine, it has one batch at a time: a group of them with nothing beside it, and
interactive batches in between. Other bulk rows wait until no more are suspected.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.protocol import Embedded, EmbeddingWork, Parked, Rejected

from ..errors import InferenceError, PoisonedJobError
from ..leases.outcomes import Failed, Outcome, Stopped
from .batcher import Held, Room
from .engine_queue import Batch, EngineQueue
from .planning.backlog import PLAN_BATCHES, Backlog, OpenEmbedding, Row, rows_of
from .planning.cost import Costs
from .planning.lane import Lane
from .reading.reader import JobReader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence, Set

    from impetus_backends.protocol import Event
    from impetus_producer.contract import MeasuredCost

    from ..inbox import ReadElsewhere
    from ..leases.claims import ClaimedJob
    from .reading.long_jobs import Elsewhere
    from .reading.reader import ReadJob
    from .reading.rows import RowRequests
    from .results import RowResults

_LOOKAHEAD_S, _BULK_LOOKAHEAD_S = 4.0, 12.0
"""Texts for so much of the device's time are taken in ahead, to be sorted together: the more of them, the less of their
batches is padding, and the longer other workers are without them."""
_LOOKAHEAD_BATCHES = (4, PLAN_BATCHES)
"""But no fewer batches than this, and no more."""
_URGENT_LOOKAHEAD = 2
"""So many times as many batches of the lane whose callers wait."""
_READING_S = 0.004
"""So long the loop tokenises before it looks at the device and the queues again."""
_LEARNING_RATE = 0.2
"""Of the moving averages that say how much that is."""
_MAX_JOBS_HELD = 2048
_MAX_UNREAD_BYTES = 32_000_000
"""No lane claims more while it holds so many jobs, or so much that it has not read."""
_MAX_JOBS_A_CLAIM = 128


class EmbeddingBatcher:
    """`Batcher` for jobs of which each text is a row. `max_wait_s`: how long the first waits for others to join it.

    `costs`: what is known of the engine's before any batch ran.
    `elsewhere`: reads the long jobs. `clock`: in seconds, by which reading is cut into slices.
    """

    def __init__(
        self,
        requests: RowRequests[Any, Any],
        results: RowResults,
        *,
        max_batch_texts: int,
        max_batch_tokens: int,
        max_wait_s: float,
        costs: Costs | None = None,
        elsewhere: Elsewhere | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = requests
        self._reader = JobReader(requests, elsewhere, clock)
        self._results = results
        self._max_wait_s = max_wait_s
        self._jobs: dict[str, OpenEmbedding] = {}
        self._urgent, self._bulk = self._lanes = tuple(
            Lane(urgent, Backlog(max_rows=max_batch_texts, max_tokens=max_batch_tokens)) for urgent in (True, False)
        )
        self._in_engine = EngineQueue()
        self._asked_at = -math.inf
        """When there last was no work to give."""
        self._passed = False
        """Whether a batch that was not full took the place of bulk, the last time that bulk was ready."""
        self._turns: deque[tuple[Lane, bool]] = deque([(self._urgent, False), (self._urgent, True), (self._bulk, True)])
        """While there are suspects: whose turn is next, of which lane, and whether it is its suspects'."""
        self._ids = count(1)
        self._costs = costs or Costs(max_batch_tokens)

    # -- taking in ---------------------------------------------------------------------------------------------------

    def room(self) -> Room:
        ahead = self._batches_in(_BULK_LOOKAHEAD_S)
        urgent = self._batches_held(self._urgent)
        interactive = self._room(self._urgent, _URGENT_LOOKAHEAD * self._batches_in(_LOOKAHEAD_S) - urgent)
        missing = ahead - urgent - self._batches_held(self._bulk)
        # Bulk is refilled in quarters, so that a claim is worth its round trip; suspects are let run out first.
        if missing < 0.25 * ahead or self._held(self._bulk) > _MAX_JOBS_HELD - _MAX_JOBS_A_CLAIM or self._has_suspects:
            return Room(interactive, 0, held=self._holds())
        return Room(interactive, min(interactive, self._room(self._bulk, missing)), held=self._holds())

    def _holds(self) -> tuple[Held, Held]:
        urgent, bulk = (
            Held(self._held(lane), self._costs.seconds_a_batch * lane.batches_a_job) for lane in self._lanes
        )
        return urgent, bulk

    def _batches_in(self, seconds: float) -> float:
        """How many batches to hold for so much of the device's time."""
        return min(max(seconds / max(self._costs.seconds_a_batch, 1e-6), _LOOKAHEAD_BATCHES[0]), _LOOKAHEAD_BATCHES[1])

    def _batches_held(self, lane: Lane) -> float:
        return lane.backlog.batches + self._reader.jobs(urgent=lane.urgent) * lane.batches_a_job

    def _room(self, lane: Lane, batches: float) -> int:
        """How many jobs a lane may take that has room for so many batches."""
        if batches <= 0 or self._reader.payload_bytes(urgent=lane.urgent) >= _MAX_UNREAD_BYTES:
            return 0
        places = _MAX_JOBS_HELD - self._held(lane)
        return max(0, min(_MAX_JOBS_A_CLAIM, places, math.ceil(batches / lane.batches_a_job)))

    def _held(self, lane: Lane) -> int:
        """How many jobs it has, read or not."""
        return lane.jobs + self._reader.jobs(urgent=lane.urgent)

    def add(self, jobs: Sequence[ClaimedJob]) -> None:
        for job in jobs:
            self._reader.add(job)

    def unread(self) -> Set[str]:
        return self._reader.unread()

    def read(self, now: float) -> list[Outcome]:
        return self._take_in(self._reader.read(_READING_S), now)

    def take_back(self, read: ReadElsewhere, now: float) -> list[Outcome]:
        job = self._reader.take_back(read.token, read.came)
        return self._take_in([job] if job is not None else [], now)

    def _take_in(self, jobs: Sequence[ReadJob | Failed], now: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for job in jobs:
            if isinstance(job, Failed):
                outcomes.append(job)
            else:
                self._open(job, now)
        return outcomes

    def _open(self, read: ReadJob, now: float) -> None:
        lane, size, model = self._lane(read.urgent), len(read.texts), self._requests.model_of(read.request)
        sparse = self._requests.sparse(read.request)
        tokens = truncated = lost = count_of_vectors = 0
        for text in read.texts:
            tokens += len(text.ids)
            truncated += text.lost > 0
            lost += text.lost
            count_of_vectors += len(text.chunks) or 1
        owner = self._jobs[read.job.id] = OpenEmbedding(
            read.job,
            read.request,
            model,
            tokens=tokens,
            truncated=truncated,
            lost=lost,
            vectors=[None] * size if sparse else np.empty((count_of_vectors, model.dimensions), dtype=np.float32),
            rows_left=size,
            urgent=read.urgent,
            output="sparse" if sparse else "dense",
        )
        cost = self._costs.of[model.model]
        cost.arrived(size, now)
        if not lane.backlog.rows:
            lane.closes_at = now + self._max_wait_s if cost.waiting_pays(now) else now
        rows = rows_of(owner, read.texts)
        if read.job.suspect:
            lane.quarantine.admit(rows)
        else:
            lane.backlog.add(rows)
        lane.jobs += 1
        lane.batches_a_job += _LEARNING_RATE * (lane.backlog.batches_of(size, owner.tokens) - lane.batches_a_job)

    # -- giving out --------------------------------------------------------------------------------------------------

    def next_work(self, now: float) -> EmbeddingWork | None:
        work = self._next_alone(now) if self._has_suspects else self._next_beside_others(now)
        if work is None:
            self._asked_at = now
        return work

    @property
    def _has_suspects(self) -> bool:
        """Whether any row is suspected, in the engine or waiting."""
        waits = any(lane.quarantine for lane in self._lanes)
        return waits or any(batch.suspect for batch in self._in_engine)

    def _next_beside_others(self, now: float) -> EmbeddingWork | None:
        lane = next((lane for lane in self._lanes if self._is_ready(lane, now)), None)
        if lane is self._bulk:
            # Texts whose callers wait are filled up while the engine has others of them, but not where bulk would take
            # the place. It lets them pass once; then it is its turn.
            waits = self._urgent.backlog.rows > 0 and now >= self._urgent.closes_at
            self._passed = waits and not self._passed
            lane = self._urgent if self._passed else self._bulk
        return None if lane is None else self._send(lane.backlog.take(), lane, now)

    def _next_alone(self, now: float) -> EmbeddingWork | None:
        if self._in_engine:
            return None
        for turn in list(self._turns):
            lane, is_suspects = turn
            if lane.quarantine if is_suspects else self._is_ready(lane, now):
                self._turns.remove(turn)
                self._turns.append(turn)
                rows = lane.quarantine.next_group() if is_suspects else lane.backlog.take()
                return self._send(rows, lane, now, is_suspects)
        return None

    def _is_ready(self, lane: Lane, now: float) -> bool:
        if not lane.backlog.rows or lane.in_engine >= 2 or (len(self._in_engine) >= 2 and not lane.urgent):
            return False
        return lane.backlog.is_full or (lane.in_engine == 0 and now >= lane.closes_at)

    def _send(self, rows: list[Row], lane: Lane, now: float, suspect: bool = False) -> EmbeddingWork:
        first = rows[0].owner
        info = first.model
        chunks = [row.chunks for row in rows] if any(row.chunks for row in rows) else None
        ids = [row.ids for row in rows]
        work = EmbeddingWork(next(self._ids), ids, lane.urgent, info.model, first.output, chunks)
        lane.in_engine += 1
        batch = Batch(rows, {row.owner for row in rows}, info.model, lane.urgent, suspect, packed=first.packs)
        self._in_engine.give(work.id, batch, now)
        return work

    def wakes_at(self) -> float | None:
        if self._reader.has_unread:
            return 0.0
        # A window that had closed when there was no work to give waits for the engine.
        closing = [lane.closes_at for lane in self._lanes if lane.backlog.rows and lane.closes_at > self._asked_at]
        return min(closing, default=None)

    # -- taking back -------------------------------------------------------------------------------------------------

    def absorb(self, event: Event, now: float) -> list[Outcome]:
        if isinstance(event, Parked):
            self._in_engine.park(event.id)
            return []
        batch = self._in_engine.take_back(event.id, now)
        if batch is None:
            return []
        self._lane(batch.urgent).in_engine -= 1
        if isinstance(event, Embedded):
            return self._completed(batch, event)
        assert isinstance(event, Rejected)
        if len(batch.rows) > 1:
            # One of these spoils the others: halves, until it stands alone.
            half = len(batch.rows) // 2
            self._run_again(batch, batch.rows[half:])
            self._run_again(batch, batch.rows[:half])
            return []
        owner = batch.rows[0].owner
        if owner.ended:
            return []
        self._end(owner)
        return [Failed(owner.job, InferenceError(event.message))]

    def _completed(self, batch: Batch, event: Embedded) -> list[Outcome]:
        made, wanted = event.sparse or event.vectors, [len(row.chunks) or 1 for row in batch.rows]
        if len(made) != sum(wanted):
            raise RuntimeError(
                f"the engine returned {len(made)} vectors for {sum(wanted)} texts: "
                "a backend must return one row a text, padding rows cut off"
            )
        self._costs.observe(batch.model, batch.padded_tokens, event.device_s)
        done: list[Outcome] = []
        at = 0
        for row, size in zip(batch.rows, wanted, strict=True):
            own, at = made[at : at + size], at + size
            owner = row.owner
            if owner.ended:
                continue
            owner.vectors[row.first : row.first + size] = own
            owner.model = event.by or owner.model
            owner.spent(None if event.energy_j is None else event.energy_j * len(row.ids) / batch.tokens)
            owner.rows_left -= 1
            if owner.rows_left == 0:
                self._end(owner)
                done.append(self._results.of(owner))
        return done

    # -- when things end otherwise -----------------------------------------------------------------------------------

    def interrupt(self, outcome: Failed | Stopped) -> tuple[list[int], list[Outcome]]:
        running, owner = self._in_engine.running, self._jobs.get(outcome.job.id)
        if isinstance(outcome, Failed) and running is not None and owner in running.owners:
            running.overdue = True
        return self.forget([outcome.job.id]), [outcome]

    def forget(self, job_ids: Collection[str]) -> list[int]:
        self._reader.forget(job_ids)
        for owner in [self._jobs[job_id] for job_id in job_ids if job_id in self._jobs]:
            self._end(owner)
        # What the engine has of them runs on, and what it makes of it is not used: batches are short.
        return []

    def _end(self, owner: OpenEmbedding) -> None:
        """None of its rows is wanted any more, wherever they are."""
        del self._jobs[owner.job.id]
        owner.ended = True
        lane = self._lane(owner.urgent)
        lane.jobs -= 1
        lane.backlog.forget(owner)
        if lane.quarantine:
            lane.quarantine.keep(lambda row: not row.owner.ended)

    def overdue(self, now: float) -> list[ClaimedJob]:
        return self._in_engine.overdue(now)

    def out_of_line(self, now: float) -> list[ClaimedJob]:
        return []

    def engine_s(self, job_id: str, now: float) -> float | None:
        owner = self._jobs.get(job_id)
        return self._in_engine.engine_s(owner, now) if owner is not None else None

    # -- what the engine does ----------------------------------------------------------------------------------------

    def has_begun(self, job_id: str) -> bool:
        owner = self._jobs.get(job_id)
        return owner is not None and owner.engine_s is not None

    def begun(self) -> Set[str]:
        return self._in_engine.begun()

    @property
    def has_work(self) -> bool:
        return bool(self._in_engine)

    @property
    def cost(self) -> MeasuredCost | None:
        return self._costs.measured

    def patience_s(self, now: float) -> float:
        return self._in_engine.patience_s(self._costs.of)

    def engine_died(self, now: float, *, suspect: bool) -> list[Outcome]:
        running, others = self._in_engine.take_all(now)
        for lane in self._lanes:
            lane.in_engine = 0
        for batch in reversed(others):
            self._run_again(batch, batch.rows)
        if running is None:
            return []
        if suspect:
            return self._judge(running, alone=len(running.rows) == 1 and not others)
        self._run_again(running, running.rows)
        return []

    def _judge(self, batch: Batch, *, alone: bool) -> list[Outcome]:
        """The batch had begun when the engine died."""
        for owner in batch.owners:
            owner.engine_s = 0.0  # it runs anew
        begun = [row for row in batch.rows if not row.owner.ended]
        again, poison = self._lane(batch.urgent).quarantine.after_death(begun, alone=alone and bool(begun))
        self._run_again(replace(batch, suspect=False), again)
        poisoned = {row.owner: row for row in poison}
        for owner in poisoned:
            self._end(owner)
        return [Failed(owner.job, self._poison(row)) for owner, row in poisoned.items()]

    def _run_again(self, batch: Batch, rows: list[Row]) -> None:
        self._lane(batch.urgent).run_again(rows, suspect=batch.suspect)

    def _lane(self, urgent: bool) -> Lane:
        return self._urgent if urgent else self._bulk

    def _poison(self, row: Row) -> PoisonedJobError:
        return PoisonedJobError(
            f"{self._requests.texts_field}: the engine died each time it ran item {row.index}, and nothing beside it"
        )
