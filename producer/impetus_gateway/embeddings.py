"""`POST /v1/embeddings`. Source: https://platform.openai.com/docs/api-reference/embeddings"""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_core import to_json
from starlette.responses import Response

from impetus_producer.contract import MAX_TEXTS_PER_JOB, EmbeddingRequest
from impetus_producer.conversation import Wire, invalid
from impetus_producer.parsing import parse_request

from .submitting import Order, embedded, submit, wants_no_wait
from .waiting import accepted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from impetus_producer.contract import EmbeddingResult

    from .gateway import Call

ENDPOINT = "/v1/embeddings"
_ROWS_AT_ONCE = 16


_Texts: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS_PER_JOB)]


def _text_alone(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise invalid(
            "token ids are not read here, as they are another model's: send text (LangChain: "
            "check_embedding_ctx_length=False)"
        )
    return value


class EmbeddingsBody(Wire):
    """Texts to embed, as in OpenAI's API."""

    input: Annotated[Any, BeforeValidator(_text_alone, json_schema_input_type=str | _Texts)]
    """A string, or a list of at most 2,048 strings. Token ids are refused."""
    model: str | None = None
    """One of `/v1/models`; none means the one that is served."""
    encoding_format: Literal["float", "base64"] | None = None
    """`base64`: of little-endian float32."""
    dimensions: Annotated[int, Field(gt=0)] | None = None
    """Keep only the first so many, for models that are trained for that."""
    user: str | None = None
    """Taken for OpenAI's sake."""
    input_type: Literal["query", "document"] | None = None
    """Puts the model's own prompt for queries or documents before each text."""
    truncate: bool | None = None
    """False: refuse a text that is longer than the model reads, instead of cutting it."""


async def embeddings(call: Call) -> Response:
    body = parse_request(EmbeddingsBody, call.json())
    wanted = body.encoding_format or "float"
    job_id = await submit(call, embedding_order(body, ENDPOINT, {"encoding_format": wanted}))
    if wants_no_wait(call):
        return accepted(job_id)
    result = await embedded(call, job_id)
    content = await in_openais_words(result, wanted)
    return Response(content, headers={"X-Job-Id": job_id}, media_type="application/json")


def embedding_order(body: EmbeddingsBody, endpoint: str, wants: dict[str, Any]) -> Order:
    """Raises `InvalidRequestError`."""
    fields = ("input", "model", "dimensions", "input_type", "truncate")
    payload = {name: value for name in fields if (value := getattr(body, name)) is not None}
    parse_request(EmbeddingRequest, payload)
    # In Redis the vectors take the least room so.
    return Order("embedding", payload | {"encoding_format": "raw"}, endpoint, wants)


async def in_openais_words(result: EmbeddingResult, encoding_format: str) -> bytes:
    """The answer as JSON. Numbers are those of the vectors to the bit: float32 as the shortest float64."""
    usage = {"prompt_tokens": result.usage.prompt_tokens, "total_tokens": result.usage.prompt_tokens}
    head = to_json({"object": "list", "model": result.model, "usage": usage})
    parts = [head[:-1], b',"data":[']
    async for at, row in rows_as_json(result, encoding_format):
        parts.append(b'%s{"object":"embedding","index":%d,"embedding":%s}' % (b"," if at else b"", at, row))
    parts.append(b"]}")
    return b"".join(parts)


async def rows_as_json(result: EmbeddingResult, encoding_format: str) -> AsyncGenerator[tuple[int, bytes], None]:
    """Each row's number and its JSON; others get their turn between."""
    for at, row in enumerate(result.embeddings.packed_rows()):
        if at and at % _ROWS_AT_ONCE == 0:
            await asyncio.sleep(0)
        if encoding_format == "base64":
            yield at, b'"%s"' % base64.b64encode(row)
        else:
            yield at, to_json(struct.unpack(f"<{len(row) // 4}f", row), inf_nan_mode="null")
