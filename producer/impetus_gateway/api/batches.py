"""`/v1/batches`: many requests in a file, answered when there is room, in another file.

Source: https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from impetus_producer.batches.objects import ExpiresAfter
from impetus_producer.contract.conversation import Wire
from impetus_producer.enqueueing.parsing import parse_request

from ..entry.answers import json_answer
from .files import id_of, limit_of, owner_of, page

if TYPE_CHECKING:
    from starlette.responses import Response

    from ..gateway import Call

ENDPOINT, BATCH, CANCEL = "/v1/batches", "/v1/batches/{id}", "/v1/batches/{id}/cancel"
_MOST_LISTED, _USUALLY_LISTED = 100, 20


class BatchBody(Wire):
    """A batch of requests, as in OpenAI's API."""

    input_file_id: str
    endpoint: str
    """`/v1/embeddings`, `/v1/chat/completions`, `/v1/completions`, or `/v1/rerank`, which OpenAI has not."""
    completion_window: str = "24h"
    """Minutes, hours or days, up to `30d`. What is not answered by then expires."""
    metadata: dict[str, str] | None = None
    """At most 16 texts, to be found again."""
    output_expires_after: ExpiresAfter | None = None
    """How long the files with answers and errors stay; none: until they are deleted."""


async def create(call: Call) -> Response:
    body = parse_request(BatchBody, call.json())
    batch = await asyncio.to_thread(
        call.gateway.batches.store.add_batch,
        body.input_file_id, body.endpoint, body.completion_window, body.metadata, call.caller.name,
        None if body.output_expires_after is None else body.output_expires_after.seconds,
    )  # fmt: skip
    return json_answer(batch.shown())


async def listed(call: Call) -> Response:
    """`limit` and `after`, as in OpenAI's API."""
    found, more = await asyncio.to_thread(
        call.gateway.batches.store.batches,
        after=call.request.query_params.get("after"),
        limit=limit_of(call, _MOST_LISTED, _USUALLY_LISTED),
        owner=owner_of(call),
    )
    return page([each.shown() for each in found], more)


async def show(call: Call) -> Response:
    batch = await asyncio.to_thread(call.gateway.batches.store.batch, id_of(call), owner_of(call))
    return json_answer(batch.shown())


async def cancel(call: Call) -> Response:
    batch = await asyncio.to_thread(call.gateway.batches.store.cancel_batch, id_of(call), owner_of(call))
    return json_answer(batch.shown())
