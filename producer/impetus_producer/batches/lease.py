"""Who runs a batch: a key in Redis that expires, so that of several machines one does."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import getnode

from ..contract import BATCH_KEY
from ..errors import ImpetusError, ServerError
from ..talks.steps import Question

if TYPE_CHECKING:
    from pathlib import Path

    from ..asynchronous import AnyAsyncProducer

LEASE_S = 30.0
RENEW_EVERY_S = 5.0
_MARGIN_S = 5.0
_FAREWELL_S = 1.0


class LeaseLostError(ImpetusError):
    """Another runner has the batch now, as this one was not heard of for too long."""


class Lease:
    """Holds one batch. `lock`: a file whose lock whoever uses this holds."""

    def __init__(self, producer: AnyAsyncProducer, batch_id: str, lock: Path) -> None:
        self._producer = producer.of(batch_id)
        self._key = f"{BATCH_KEY}{batch_id}"
        # On one machine the file's lock decides, which goes with its holder: who comes after one that died need not
        # wait for the lease to run out.
        self._holder = f"{socket.gethostname()} {getnode():x} {lock.resolve()}".encode()
        self._renewed = _now()

    @property
    def held(self) -> bool:
        """False from when somebody else might have it, by this machine's clocks."""
        return all(now - then < LEASE_S - _MARGIN_S for now, then in zip(_now(), self._renewed, strict=True))

    async def take(self) -> bool:
        """Whether nobody else has it. Also renews it."""
        asked = _now()
        taken: bool = await self._producer.ask(Question(self._take))
        if taken:
            self._renewed = asked
        return taken

    async def keep(self) -> None:
        """Raises `LeaseLostError`."""
        if not await self.take():
            raise LeaseLostError("another runner has taken over this batch, as this one was not heard of for too long")

    async def give_up(self) -> None:
        """So that others need not wait for it to run out. A server that does not answer is not waited for."""
        with suppress(ServerError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._producer.ask(Question(self._give_up))

    async def _take(self, client: Any) -> bool:
        return bool(await client.transaction(self._set, self._key, value_from_callable=True))

    async def _set(self, pipeline: Any) -> bool:
        holder = await pipeline.get(self._key)
        pipeline.multi()
        if holder in (None, self._holder):
            pipeline.set(self._key, self._holder, px=int(1000 * LEASE_S))
        return holder in (None, self._holder)

    async def _give_up(self, client: Any) -> None:
        async def delete(pipeline: Any) -> None:
            holder = await pipeline.get(self._key)
            pipeline.multi()
            if holder == self._holder:
                pipeline.delete(self._key)

        await client.transaction(delete, self._key)


def _now() -> tuple[float, float]:
    """By two clocks: one stands still while a machine sleeps, the other is set."""
    return time.monotonic(), time.time()
