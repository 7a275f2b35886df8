"""What the gateway knows of queues and workers, looked at once a second, so that a refusal costs Redis nothing."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from impetus_producer import contract
from impetus_producer.errors import ServerError
from impetus_producer.watching.fleet import Fleet, merged, read_fleet

from ..entry.errors import HttpError, busy, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_producer import Producer
    from impetus_producer.watching.fleet import QueueState, WorkerState

    from ..settings import Settings

_log = logging.getLogger(__name__)
_EVERY_S = 1.0
STALE_S = 10.0
"""So long what was seen counts; a server that is silent is waited for longer."""
_SERVED = {"embedding": "embeddings", "generation": "generations", "rerank": "rerankings"}
_MAX_RETRY_S = 60.0


class Watch:
    """`run()` looks, everything else answers from what was seen last. `servers`: asked in threads, as that blocks."""

    def __init__(self, servers: Sequence[Producer], settings: Settings) -> None:
        self.servers = servers
        self._settings = settings
        self._seen_at: dict[Producer, Fleet] = {}
        """What was seen at each server that answered."""
        self._asking: dict[Producer, asyncio.Future[Fleet]] = {}
        """Those that did not answer in time, and are not asked again meanwhile."""
        self._fleet: Fleet | None = None
        """At all of them together."""
        self._looked_at = 0.0
        self._sent: dict[str, int] = {}
        """By queue, how many jobs were put there since the last look."""
        self._seen = asyncio.Event()
        self.on_look: Callable[[Fleet | None], None] = lambda fleet: None

    @property
    def fleet(self) -> Fleet | None:
        """None while the server is not to be reached, or says nothing."""
        return self._fleet if time.monotonic() - self._looked_at < STALE_S else None

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        looks = await asyncio.gather(*(self._look_at(server) for server in self.servers))
        self._seen_at = {server: fleet for server, fleet in zip(self.servers, looks, strict=True) if fleet is not None}
        fleet = merged(list(self._seen_at.values())) if self._seen_at else None
        self._fleet, self._looked_at = fleet, time.monotonic()
        self._sent.clear()
        self.on_look(fleet)
        self._seen.set()
        self._seen = asyncio.Event()

    async def _look_at(self, server: Producer) -> Fleet | None:
        """One that is silent is not waited for by the others."""
        asking = self._asking.pop(server, None) or _aside(partial(read_fleet, server.connection))
        await asyncio.wait({asking}, timeout=None if len(self.servers) == 1 else STALE_S / 2)
        if not asking.done():
            self._asking[server] = asking
            return None
        try:
            return asking.result()
        except ServerError as error:
            if server in self._seen_at:
                _log.warning("the queue's server is away: %s", error)
            return None

    async def next_look(self) -> None:
        """Waits for the next one, and no longer than one is good for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STALE_S):
                await self._seen.wait()

    def sent(self, queue: str, jobs: int) -> None:
        """So many were put there."""
        self._sent[queue] = self._sent.get(queue, 0) + jobs

    def serving(self, queue: str) -> list[WorkerState]:
        """The workers that take jobs of this queue now."""
        fleet = self.fleet
        return [] if fleet is None else [each for each in fleet.workers if each.serves(queue)]

    @property
    def reached(self) -> list[Producer]:
        """The servers that answered the last look."""
        return [] if self.fleet is None else list(self._seen_at)

    def taking(self, queue: str) -> Sequence[Producer]:
        """The servers whose jobs of this queue are taken now; where none's are, those that are reached, or all."""
        taken = [server for server in self.reached if _takes(self._seen_at[server], queue)]
        return taken or self.reached or self.servers

    def is_served(self, queue: str) -> bool:
        """Whether somebody takes jobs of this queue, and is not told to take none."""
        fleet = self.fleet
        return fleet is not None and not fleet.suspended and bool(self.serving(queue))

    def default_model(self, role: str) -> str:
        """The name of what answers where a request names no model; empty where that is unknown."""
        workers = self.serving(contract.ROLE_QUEUES[role][0])
        return workers[0].model if workers else ""

    def check_served(self, queue: str) -> None:
        """Raises `HttpError` 503 where nobody takes jobs of this queue."""
        fleet = self._reached()
        if fleet.suspended:
            raise unavailable("the workers are suspended; try again later", 30, code="suspended")
        if not self.serving(queue) and not fleet.workers_left_out:
            role = _SERVED[contract.role_of_queue(queue)]
            raise unavailable(
                f"no worker serves {role} now; try again, or send Prefer: respond-async", code="no_worker"
            )

    def check_model(self, queue: str, model: str | None) -> None:
        """Raises `HttpError` 404 where all who take jobs of this queue have said their models, and this is none."""
        workers = self.serving(queue)
        if model is None or not workers or self._reached().workers_left_out or not all(each.model for each in workers):
            return
        if not any(model == each.model or model in each.aliases for each in workers):
            more = {other.name for each in workers for other in each.more_models}
            names = ", ".join(sorted({each.model for each in workers} | more))
            raise HttpError(
                404, f"there is no model {model!r:.200} here; there is {names}", param="model", code="model_not_found"
            )

    def check_backlog(self, queue: str) -> None:
        """Raises `HttpError` 429 while the queue is longer, or its first job older, than the settings allow."""
        state = self.queue(queue)
        waiting = (state.waiting or 0) + self._sent.get(queue, 0)
        waited_s = state.oldest_s or 0.0
        if waiting >= self._settings.max_backlog_jobs:
            raise busy(f"{waiting:,} jobs wait already; try again later", _retry_s(waited_s), code="backlog")
        if waited_s > self._settings.max_wait_s:
            raise busy(f"jobs wait for {waited_s:.0f} s now; try again later", _retry_s(waited_s), code="backlog")

    def check_bulk_backlog(self, queue: str) -> None:
        """Raises `HttpError` 429 while more jobs wait that nobody waits for than the settings allow."""
        waiting = (self.queue(queue).waiting or 0) + self._sent.get(queue, 0)
        if waiting >= self._settings.max_bulk_backlog_jobs:
            raise busy(f"{waiting:,} jobs wait already; try again later", _MAX_RETRY_S, code="backlog")

    def queue(self, name: str) -> QueueState:
        """Raises `HttpError` 503 where the server is away."""
        return next(each for each in self._reached().queues if each.name == name)

    def _reached(self) -> Fleet:
        if (fleet := self.fleet) is None:
            raise unavailable("the queue's server is not to be reached; try again", code="queue_unavailable")
        return fleet


def _aside(question: Callable[[], Fleet]) -> asyncio.Future[Fleet]:
    """Asks in a thread that the program does not wait for when it ends, as it would for asyncio's own."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Fleet] = loop.create_future()

    def ask() -> None:
        try:
            settle = partial(answered.set_result, question())
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            settle = partial(answered.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=ask, name="watch", daemon=True).start()
    return answered


def _takes(fleet: Fleet, queue: str) -> bool:
    return not fleet.suspended and any(worker.serves(queue) for worker in fleet.workers)


def _retry_s(waited_s: float) -> float:
    return min(max(1.0, waited_s / 2), _MAX_RETRY_S)
