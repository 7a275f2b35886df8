"""`/v1/batches`: OpenAI's Batch API, on your own Macs. What runs them is `impetus_producer.batches.service`.

Source of the shapes: https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from impetus_producer.batches.service import BatchService
from impetus_producer.parsing import parse_request

from .answers import json_answer
from .files import kept, limit_of, page, seen_by, store_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

    from impetus_producer.asynchronous import AsyncProducer
    from impetus_producer.batches.store import BatchStore

    from .gateway import Call

ENDPOINT = "/v1/batches"
BATCH = "/v1/batches/{id}"
CANCEL = "/v1/batches/{id}/cancel"
_MOST_LISTED = 100


class BatchBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: Annotated[str, Field(max_length=200)]
    endpoint: Annotated[str, Field(max_length=200)]
    completion_window: Annotated[str, Field(max_length=20)] = "24h"
    metadata: dict[str, str] | None = None
    output_expires_after: None = None


async def create(call: Call) -> Response:
    """A batch of the lines of a file that was uploaded before."""
    store = store_of(call)
    body = parse_request(BatchBody, call.json())
    made = await kept(
        store.add_batch, body.input_file_id, body.endpoint, body.completion_window, body.metadata, call.caller.name
    )
    return json_answer(made.shown())


async def listed(call: Call) -> Response:
    """The newest first."""
    found, more = await kept(
        store_of(call).batches,
        after=call.request.query_params.get("after"),
        limit=limit_of(call, _MOST_LISTED),
        owner=seen_by(call),
    )
    return json_answer(page([each.shown() for each in found], more))


async def show(call: Call) -> Response:
    return json_answer((await kept(store_of(call).batch, _id(call), seen_by(call))).shown())


async def cancel(call: Call) -> Response:
    """What has not begun is not begun any more; what is answered stays."""
    return json_answer((await kept(store_of(call).cancel_batch, _id(call), seen_by(call))).shown())


def _id(call: Call) -> str:
    return str(call.request.path_params["id"])


class BatchRuns:
    """Runs the batches of a folder beside a gateway, in a thread with an event loop of its own: reading and writing
    files holds up nobody's requests. Other gateways may run the folder's batches too; each has one runner.
    """

    def __init__(self, store: BatchStore, make_producer: Callable[[], AsyncProducer]) -> None:
        self._store = store
        self._make_producer = make_producer
        self._loop = asyncio.new_event_loop()
        self._running: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, within_s: float) -> None:
        """What was begun is gone on with by whoever runs next. Blocks."""

        def cancel() -> None:
            if self._running is not None:
                self._running.cancel()

        self._loop.call_soon_threadsafe(cancel)
        self._thread.join(within_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._running = self._loop.create_task(self._serve())
        try:
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._running)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        producer = self._make_producer()
        try:
            await BatchService(self._store, producer).run()
        finally:
            await producer.close()
