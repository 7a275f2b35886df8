"""Runs the batches of a folder, beside whoever serves it, from wherever they were left."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ImpetusError
from .journal import Journal, LockedError
from .lease import Lease
from .lines import read_lines, survey
from .objects import BatchError, BatchErrors, RequestCounts
from .runner import CANCELLED, DEFAULT_WINDOW_JOBS, EXPIRED, Runner
from .store import NotKeptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..asynchronous import AnyAsyncProducer
    from .objects import Batch, Status
    from .runner import Stop
    from .store import BatchStore

_LOOK_EVERY_S = 1.0
_COUNT_EVERY_S = 1.0
_SWEEP_EVERY_S = 60.0
_AGAIN_AFTER_S = 10.0
"""So long a batch is left alone that somebody else has."""
_log = logging.getLogger("impetus_producer")


@dataclass(slots=True)
class BatchService:
    """`at_once`: so many batches run side by side, with a window of `window_jobs` jobs each. `on_end` is called before
    a batch is over, with the status that it comes to; again where that was not written any more.

    Any number of these may share a folder and a Redis: of each batch there is one runner. Reads and writes files as it
    goes: give it an event loop of its own where others must not wait for that.
    """

    store: BatchStore
    producer: AnyAsyncProducer
    at_once: int = 4
    window_jobs: int = DEFAULT_WINDOW_JOBS
    on_end: Callable[[Batch, Status], None] = lambda batch, status: None
    _running: dict[str, asyncio.Task[None]] = field(init=False, default_factory=dict)
    _not_before: dict[str, float] = field(init=False, default_factory=dict)

    async def run(self) -> None:
        """Until it is cancelled. What was begun is gone on with by whoever runs next."""
        sweep_at = 0.0
        try:
            while True:
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + _SWEEP_EVERY_S
                    await asyncio.to_thread(self._sweep)
                for batch_id in await asyncio.to_thread(self.store.unfinished):
                    if len(self._running) < self.at_once and self._may_begin(batch_id):
                        task = asyncio.create_task(self._run_quietly(batch_id), name=batch_id)
                        self._running[batch_id] = task
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _sweep(self) -> None:
        try:
            self.store.delete_expired()
        except (ImpetusError, OSError) as error:
            _log.warning("Files that have expired are deleted later: %s", error)

    def is_running(self, batch_id: str) -> bool:
        return batch_id in self._running

    def _may_begin(self, batch_id: str) -> bool:
        return not self.is_running(batch_id) and time.monotonic() >= self._not_before.get(batch_id, 0.0)

    async def _run_quietly(self, batch_id: str) -> None:
        try:
            await self.run_batch(batch_id)
        except (ImpetusError, OSError) as error:
            # Another look comes soon.
            _log.warning("Batch %s goes on later: %s", batch_id, error)
        finally:
            del self._running[batch_id]
            self._not_before[batch_id] = time.monotonic() + _AGAIN_AFTER_S

    async def run_batch(self, batch_id: str) -> None:
        """Brings a batch to its end, unless somebody else is at it."""
        place = self.store.workplace(batch_id)
        lock = place / "run.lock"
        try:
            journal = Journal(place / "output.jsonl", place / "errors.jsonl", lock)
        except LockedError:
            return
        with journal:
            lease = Lease(self.producer, batch_id, lock)
            if not await lease.take():
                return
            try:
                batch = self.store.batch(batch_id)
                if batch.status == "validating":
                    batch = await self._validate(batch)
                if batch.status in ("in_progress", "cancelling"):
                    batch = await self._work(batch, journal, lease)
                if batch.status == "finalizing":
                    self._finalize(batch, journal)
            finally:
                await lease.give_up()

    async def _validate(self, batch: Batch) -> Batch:
        try:
            with self.store.open_input(batch) as file:
                found = await asyncio.to_thread(survey, file, batch.endpoint)
        except NotKeptError as error:
            return self._failed(batch, [BatchError(code="file_not_found", message=str(error), param="input_file_id")])
        if found.errors:
            errors = [BatchError(code=e.code, message=e.message, param=e.param, line=e.line) for e in found.errors]
            return self._failed(batch, errors)
        counts = RequestCounts(total=found.lines)

        def begin(now: Batch) -> Batch:
            if now.status == "validating":
                return now.now("in_progress", request_counts=counts)
            return now.model_copy(update={"request_counts": counts})

        return self.store.change(batch.id, begin)

    def _failed(self, batch: Batch, errors: list[BatchError]) -> Batch:
        return self._end(batch, "failed", errors=BatchErrors(data=errors))

    def _end(self, batch: Batch, status: Status, **changes: Any) -> Batch:
        self.on_end(batch, status)
        return self.store.change(batch.id, lambda now: now.now(status, **changes))

    async def _work(self, batch: Batch, journal: Journal, lease: Lease) -> Batch:
        count_at = 0.0

        def look() -> Stop | None:
            nonlocal count_at
            if time.monotonic() >= count_at:
                count_at = time.monotonic() + _COUNT_EVERY_S
                now = self._count(batch.id, journal)
                if now.status == "cancelling":
                    return CANCELLED
            return EXPIRED if time.time() >= batch.expires_at else None

        runner = Runner(self.producer, batch.id, journal, lease, look, self.window_jobs)
        try:
            file = self.store.open_input(batch)
        except NotKeptError as error:
            return self._failed(batch, [BatchError(code="file_not_found", message=str(error), param="input_file_id")])
        with file:
            stop = await runner.run(read_lines(file))
        # The end is told by what was not asked for, whoever comes to write it down.
        self._count(batch.id, journal)
        expired = {"expired_at": int(time.time())} if stop is EXPIRED else {}
        return self.store.change(batch.id, lambda now: now.now("finalizing", **expired))

    def _count(self, batch_id: str, journal: Journal) -> Batch:
        def change(now: Batch) -> Batch:
            counts = now.request_counts.model_copy(update={"completed": journal.completed, "failed": journal.failed})
            return now.model_copy(update={"request_counts": counts})

        return self.store.change(batch_id, change)

    def _finalize(self, batch: Batch, journal: Journal) -> None:
        output = self.store.keep_answers(batch, journal.output, "output")
        errors = self.store.keep_answers(batch, journal.errors, "errors")
        status: Status = "completed"
        if batch.cancelling_at is not None:
            status = "cancelled"
        elif batch.expired_at is not None:
            status = "expired"
        self._end(batch, status, output_file_id=output, error_file_id=errors)
