"""Runs the lines of one batch: a window of jobs on the bulk queues, and a journal of what became of them.

The job of a line has the same id whoever runs the batch and however often: what an earlier runner had enqueued is found
again, and nothing is enqueued twice. An answer is on the disk before it goes from Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..bodies.refusals import Refusal, refusal_of
from ..enqueueing import jobs
from ..errors import (
    ImpetusError,
    InvalidRequestError,
    JobCancelledError,
    JobNotFoundError,
    ResultTimeoutError,
    ServerError,
)
from .endpoints import ENDPOINTS
from .journal import Entry
from .lease import RENEW_EVERY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ..asynchronous import AnyAsyncProducer, AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncRerankHandle
    from .endpoints import Endpoint
    from .journal import Journal
    from .lease import Lease
    from .lines import BatchLine

DEFAULT_WINDOW_JOBS = 256
KEPT_S = 7 * 24 * 3600
"""So long Redis keeps what nobody is there to read: whoever runs a batch may be away for a week."""
_JOBS_PER_ROUND_TRIP = 32
_MOST_LOSSES = 5
"""So often is a job sent again that Redis lost."""
_STOPPING_S = 30.0
_FAREWELL_S = 2.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a batch ends before its time. What was not answered by then has this for its error."""

    code: str
    message: str


EXPIRED = Stop("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = Stop("batch_cancelled", "This request was not executed, as the batch was cancelled.")


@dataclass(slots=True, eq=False)
class _Flight:
    """A line while its job is in Redis. `payload` is None where there is no such job."""

    line: BatchLine
    job_id: str
    endpoint: Endpoint
    payload: Mapping[str, Any] | None = None
    entry: Entry | None = None
    task: asyncio.Task[None] | None = None
    given_up: bool = False


@dataclass(slots=True)
class Runner:
    """`look` is called twice a second; it says whether to stop, and what it raises ends the run as it stands."""

    producer: AnyAsyncProducer
    batch_id: str
    journal: Journal
    lease: Lease
    look: Callable[[], Stop | None]
    window_jobs: int = DEFAULT_WINDOW_JOBS
    _flying: set[_Flight] = field(init=False, default_factory=set)
    _landed: asyncio.Queue[_Flight | None] = field(init=False, default_factory=asyncio.Queue)
    _stop: Stop | None = field(init=False, default=None)

    async def run(self, lines: Iterable[BatchLine]) -> Stop | None:
        """Returns once each of the lines is in the journal: None, or why not all were asked for.

        Raises what ends it before: a `ServerError` when patience is over, `LeaseLostError`, what `look` raises. Jobs
        stay in Redis then, for whoever goes on.
        """
        # Whoever ran it before may have been killed between the journal and this.
        await self._discard(self.journal.last_job_ids)
        room = asyncio.Semaphore(self.window_jobs)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(group))
                writing = group.create_task(self._write(room))
                async with asyncio.TaskGroup() as flights:
                    await self._feed(lines, room, flights)
                self._landed.put_nowait(None)
                await writing
                watching.cancel()
        except BaseExceptionGroup as several:
            raise _first(several) from None
        return self._stop

    async def withdraw(self) -> None:
        """Once a run was given up: takes what still waits off the queues. Jobs that run end by themselves, and their
        results are found by whoever goes on. A server that does not answer is not waited for.
        """
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._take_off(self._flying)

    async def _take_off(self, flights: Iterable[_Flight]) -> None:
        by_queue: dict[str, list[str]] = {}
        for flight in flights:
            by_queue.setdefault(flight.endpoint.queue, []).append(flight.job_id)
        for queue, job_ids in by_queue.items():
            for server, at_it in self.producer.by_server(job_ids).items():
                withdrawn = await server.ask(jobs.withdrawing(at_it, queue))
                await server.hold(jobs.discarding(withdrawn, queue))

    async def _discard(self, job_ids: Iterable[str], queue: str | None = None) -> None:
        for server, at_it in self.producer.by_server(job_ids).items():
            await server.hold(jobs.discarding(at_it, queue))

    async def _feed(self, lines: Iterable[BatchLine], room: asyncio.Semaphore, flights: asyncio.TaskGroup) -> None:
        left = (line for line in lines if line.custom_id not in self.journal.done)
        while group := await self._some(left, room):
            if self._stop is None:
                await self._enqueue(flight for flight in group if flight.entry is None)
            for flight in group:
                if flight.entry is None and self._stop is not None and flight not in self._flying:
                    flight.entry = self._never_asked(flight)
                if flight.entry is not None:
                    self._landed.put_nowait(flight)
                else:
                    flight.task = flights.create_task(self._fly(flight))
                    if self._stop is not None:  # since it was enqueued
                        flights.create_task(self._withdraw(flight))

    async def _some(self, lines: Iterator[BatchLine], room: asyncio.Semaphore) -> list[_Flight]:
        """The next lines for which there is room, one at least, until there are none left."""
        group: list[_Flight] = []
        while len(group) < _JOBS_PER_ROUND_TRIP and not (group and room.locked()):
            if (line := next(lines, None)) is None:
                break
            await room.acquire()
            group.append(self._begun(line))
        return group

    def _begun(self, line: BatchLine) -> _Flight:
        named = f"{self.batch_id}\0{line.custom_id}".encode(errors="surrogatepass")
        flight = _Flight(line, hashlib.sha256(named).hexdigest()[:32], ENDPOINTS[line.url])
        try:
            flight.payload = flight.endpoint.payload(line.body)
        except InvalidRequestError as error:
            flight.entry = Entry.refusal(line.custom_id, flight.job_id, refusal_of(error))
        return flight

    async def _enqueue(self, flights: Iterable[_Flight]) -> None:
        by_queue: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
        for flight in flights:
            assert flight.payload is not None
            self._flying.add(flight)
            endpoint = flight.endpoint
            by_queue.setdefault((endpoint.queue, endpoint.function), {})[flight.job_id] = flight.payload
        kept = {"result_ttl_s": KEPT_S, "failure_ttl_s": KEPT_S}
        options = replace(self.producer.options, **kept, meta={"batch": self.batch_id})
        for (queue, function), payloads in by_queue.items():
            await self.producer.enqueue(queue, function, payloads, options)

    async def _fly(self, flight: _Flight) -> None:
        try:
            flight.entry = await self._ended(flight)
        except asyncio.CancelledError:
            if not flight.given_up:
                raise
            flight.entry = self._never_asked(flight)
        self._flying.discard(flight)
        self._landed.put_nowait(flight)

    async def _ended(self, flight: _Flight) -> Entry:
        handle, custom_id, job_id = self._handle(flight), flight.line.custom_id, flight.job_id
        for _ in range(_MOST_LOSSES + 1):
            try:
                result: Any = await handle.result()
                return Entry.answer(custom_id, job_id, flight.endpoint.answer(result, job_id, flight.line.body))
            except JobNotFoundError:
                if self._stop is not None:
                    return self._never_asked(flight)
                await handle.delete()
                await self._enqueue([flight])
            except JobCancelledError as error:
                return self._never_asked(flight) if self._stop else Entry.refusal(custom_id, job_id, refusal_of(error))
            except ServerError:
                raise
            except ImpetusError as error:
                return Entry.refusal(custom_id, job_id, refusal_of(error))
        lost = Refusal(503, f"its job was lost from Redis {_MOST_LOSSES + 1} times", code="job_lost")
        return Entry.refusal(custom_id, job_id, lost)

    def _handle(self, flight: _Flight) -> AsyncEmbeddingHandle | AsyncGenerationHandle | AsyncRerankHandle:
        return self.producer.of(flight.job_id).handle_for(flight.endpoint.role, flight.job_id, awaited=False)

    def _never_asked(self, flight: _Flight) -> Entry:
        assert self._stop is not None
        return Entry.never_asked(flight.line.custom_id, flight.job_id, self._stop.code, self._stop.message)

    async def _write(self, room: asyncio.Semaphore) -> None:
        """Writes what landed, then frees what Redis holds of it, then lets as many others go."""
        over = False
        while not over:
            landed = [await self._landed.get()]
            while not self._landed.empty():
                landed.append(self._landed.get_nowait())
            over = landed[-1] is None
            flights = [flight for flight in landed if flight is not None]
            if not self.lease.held:
                await self.lease.keep()
            self.journal.append([flight.entry for flight in flights if flight.entry is not None])
            # With one that was given up goes the wish that it be stopped.
            ended = [flight for flight in flights if flight.task is not None and not flight.given_up]
            for queue in {flight.endpoint.queue for flight in ended}:
                of_queue = [flight.job_id for flight in ended if flight.endpoint.queue == queue]
                await self._discard(of_queue, queue)
            for _ in flights:
                room.release()

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        """Keeps the lease, and withdraws what flies when it is to stop."""
        renew_at = 0.0
        while True:
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + RENEW_EVERY_S
                await self.lease.keep()
            if self._stop is None and (stop := self.look()) is not None:
                self._stop = stop
                for flight in self._flying:
                    group.create_task(self._withdraw(flight))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _withdraw(self, flight: _Flight) -> None:
        try:
            await self._handle(flight).cancel(_STOPPING_S)
        except JobNotFoundError:
            pass
        except ResultTimeoutError:
            # Its worker has been told, and nobody waits for that.
            flight.given_up = True
            if flight.task is not None:
                flight.task.cancel()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
