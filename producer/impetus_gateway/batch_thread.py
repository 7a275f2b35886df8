"""The thread that runs the batches of a folder."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from impetus_producer.asynchronous import for_tasks
from impetus_producer.batches.service import BatchService

if TYPE_CHECKING:
    from impetus_producer import Producer, SpreadProducer
    from impetus_producer.batches.store import BatchStore

    from .webhooks import Webhooks


class Batches:
    """The batches of one folder, which a thread of its own runs, as reading and writing files takes time.

    Several gateways may share the folder; each batch is run by one of them, and gone on with by another.
    """

    def __init__(self, store: BatchStore, producer: Producer | SpreadProducer, webhooks: Webhooks) -> None:
        self.store = store
        self._webhooks = webhooks
        self._producer = producer
        self._thread: threading.Thread | None = None
        self._loop = asyncio.new_event_loop()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = self._loop.create_task(self._run())
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()
        self._webhooks.start()

    async def stop(self) -> None:
        """Ends the thread. What it was running is gone on with by whoever comes next."""
        if self._thread is None or self._running is None:
            return
        self._webhooks.stop()
        self._loop.call_soon_threadsafe(self._running.cancel)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        assert self._running is not None
        try:
            self._loop.run_until_complete(asyncio.wait({self._running}))
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _run(self) -> None:
        producer = for_tasks(self._producer)
        try:
            await BatchService(self.store, producer, on_end=self._webhooks.note).run()
        finally:
            await producer.close()
