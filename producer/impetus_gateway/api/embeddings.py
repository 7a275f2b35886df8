"""`POST /v1/embeddings`. Source: https://platform.openai.com/docs/api-reference/embeddings"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from impetus_producer.bodies.embeddings import (
    ENDPOINT as ENDPOINT,
)
from impetus_producer.bodies.embeddings import (
    EmbeddingsBody,
    embedding_answer,
    embedding_payload,
    rows_as_json,
)
from impetus_producer.enqueueing.parsing import parse_request

from ..embedding import embed_or_recall
from ..submitting import Order, accepted, submit, wants_no_wait

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from impetus_producer.contract import EmbeddingResult

    from ..gateway import Call

_ROWS_AT_ONCE = 16


async def embeddings(call: Call) -> Response:
    body = parse_request(EmbeddingsBody, call.json())
    wanted = body.encoding_format or "float"
    order = embedding_order(body, ENDPOINT, {"encoding_format": wanted})
    if wants_no_wait(call):
        return accepted(await submit(call, order))
    job_id, result = await embed_or_recall(call, order)
    return answered(await in_openais_words(result, wanted), job_id)


def answered(content: bytes, job_id: str | None) -> Response:
    """`job_id`: None where no job was needed."""
    headers = {} if job_id is None else {"X-Job-Id": job_id}
    return Response(content, headers=headers, media_type="application/json")


def embedding_order(body: EmbeddingsBody, endpoint: str, wants: dict[str, Any]) -> Order:
    """Raises `InvalidRequestError`."""
    return Order("embedding", embedding_payload(body), endpoint, wants)


async def in_openais_words(result: EmbeddingResult, encoding_format: str) -> bytes:
    """The answer as JSON."""
    return b"".join([part async for part in _in_turns(embedding_answer(result, encoding_format))])


async def vectors_as_json(result: EmbeddingResult) -> list[bytes]:
    return [row async for row in _in_turns(rows_as_json(result, "float"))]


async def _in_turns(parts: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    """These; others get their turn between."""
    for at, part in enumerate(parts):
        if at and at % _ROWS_AT_ONCE == 0:
            await asyncio.sleep(0)
        yield part
