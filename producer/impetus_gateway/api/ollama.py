"""`POST /api/embed` and `/api/embeddings`, for Ollama's clients.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embeddings. What is Ollama's own matter, such as
how long a model stays loaded, is taken and not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from impetus_producer.bodies.embeddings import EmbeddingsBody
from impetus_producer.contract.conversation import Wire
from impetus_producer.enqueueing.parsing import parse_request

from ..embedding import embed_or_recall
from ..submitting import accepted, submit, wants_no_wait
from .embeddings import answered, embedding_order, vectors_as_json

if TYPE_CHECKING:
    from starlette.responses import Response

    from impetus_producer.contract import EmbeddingResult

    from ..gateway import Call

EMBED = "/api/embed"
EMBEDDINGS = "/api/embeddings"


class _Ollama(Wire):
    model: str | None = None
    """One of `/v1/models`; none or an empty one means the one that is served."""
    options: dict[str, Any] | None = None
    """Taken for Ollama's sake."""
    keep_alive: float | str | None = None
    """Taken for Ollama's sake."""


class EmbedBody(_Ollama):
    """Texts to embed, as in Ollama's API."""

    input: str | list[str]
    """A text, or a list of them."""
    truncate: bool | None = None
    """False: refuse a text that is longer than the model reads, instead of cutting it."""
    dimensions: Annotated[int, Field(gt=0)] | None = None


class OldEmbedBody(_Ollama):
    """A text to embed, as in Ollama's older API."""

    prompt: str


async def embed(call: Call) -> Response:
    body = parse_request(EmbedBody, call.json())
    asked = EmbeddingsBody(
        input=body.input, model=body.model or None, truncate=body.truncate, dimensions=body.dimensions
    )
    return await _answered(call, asked, EMBED)


async def embeddings(call: Call) -> Response:
    body = parse_request(OldEmbedBody, call.json())
    return await _answered(call, EmbeddingsBody(input=body.prompt, model=body.model or None), EMBEDDINGS)


async def _answered(call: Call, asked: EmbeddingsBody, endpoint: str) -> Response:
    order = embedding_order(asked, endpoint, {})
    if wants_no_wait(call):
        return accepted(await submit(call, order))
    job_id, result = await embed_or_recall(call, order)
    return answered(await in_ollamas_words(result, endpoint, call.watch.seconds()), job_id)


async def in_ollamas_words(result: EmbeddingResult, endpoint: str, took_s: float = 0.0) -> bytes:
    """The answer of one of the two as JSON. Durations are in nanoseconds."""
    rows = await vectors_as_json(result)
    if endpoint == EMBEDDINGS:
        return b'{"embedding":%s}' % rows[0]
    head = to_json({
        "model": result.model,
        "total_duration": int(took_s * 1e9),
        "load_duration": 0,
        "prompt_eval_count": result.usage.prompt_tokens,
    })  # fmt: skip
    return b'%s,"embeddings":[%s]}' % (head[:-1], b",".join(rows))
