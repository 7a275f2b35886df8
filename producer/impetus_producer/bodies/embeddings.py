"""`/v1/embeddings`. Source: https://platform.openai.com/docs/api-reference/embeddings"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_core import to_json

from ..contract import MAX_TEXTS_PER_JOB, PROMPTINGS, EmbeddingRequest, SparseBlock
from ..contract.conversation import Asked, invalid
from ..contract.elsewhere import OF_EMBEDDINGS
from ..enqueueing.parsing import parse_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..contract import EmbeddingResult

ENDPOINT = "/v1/embeddings"

_Texts: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS_PER_JOB)]


def _text_alone(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise invalid(
            "token ids are not read here, as they are another model's: send text (LangChain: "
            "check_embedding_ctx_length=False)"
        )
    return value


class EmbeddingsBody(Asked):
    """Texts to embed, as in OpenAI's API."""

    changes_nothing = OF_EMBEDDINGS

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
    prompt_name: str | None = None
    """Puts the model's own prompt of this name before each text."""
    prompt: str | None = None
    """Puts this before each text. Of it, `prompt_name` and `input_type` one may be given."""
    truncate: bool | None = None
    """False: refuse a text that is longer than the model reads, instead of cutting it."""
    output: Literal["dense", "sparse"] | None = None
    """`sparse`: each embedding is `{"indices": […], "values": […]}`, weights by the ids of the model's tokens, whatever
    the encoding format."""


def embedding_payload(body: EmbeddingsBody) -> dict[str, Any]:
    """What is sent for it. Raises `InvalidRequestError`."""
    fields = ("input", "model", "dimensions", *PROMPTINGS, "truncate", "output")
    payload = {name: value for name in fields if (value := getattr(body, name)) is not None}
    parse_request(EmbeddingRequest, payload)
    if body.output == "sparse":
        return payload
    # In Redis the vectors take the least room so.
    return payload | {"encoding_format": "raw"}


def embedding_answer(result: EmbeddingResult, encoding_format: str) -> Iterator[bytes]:
    """The answer as JSON, a row at a time."""
    usage = {"prompt_tokens": result.usage.prompt_tokens, "total_tokens": result.usage.prompt_tokens}
    head = to_json({"object": "list", "model": result.model, "usage": usage})
    yield head[:-1] + b',"data":['
    for at, row in enumerate(rows_as_json(result, encoding_format)):
        yield b'%s{"object":"embedding","index":%d,"embedding":%s}' % (b"," if at else b"", at, row)
    yield b"]}"


def rows_as_json(result: EmbeddingResult, encoding_format: str) -> Iterator[bytes]:
    """Each vector as JSON. Numbers are its own to the bit: float32 as the shortest float64."""
    if isinstance(result.embeddings, SparseBlock):
        yield from (to_json(vector) for vector in result.sparse)
        return
    for row in result.embeddings.packed_rows():
        if encoding_format == "base64":
            yield b'"%s"' % base64.b64encode(row)
        else:
            yield to_json(struct.unpack(f"<{len(row) // 4}f", row), inf_nan_mode="null")
