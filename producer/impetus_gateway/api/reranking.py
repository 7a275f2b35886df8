"""`POST /v1/rerank`, as Cohere and Jina have it. Sources: https://docs.cohere.com/reference/rerank and
https://jina.ai/reranker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from impetus_producer.contract import MAX_DOCUMENTS_PER_JOB, RerankRequest
from impetus_producer.contract.conversation import Wire
from impetus_producer.parsing import parse_request

from ..entry.answers import json_answer
from ..submitting import Order, accepted, reranked, submit, wants_no_wait

if TYPE_CHECKING:
    from starlette.responses import Response

    from impetus_producer.contract import RerankResult

    from ..gateway import Call

ENDPOINT = "/v1/rerank"

_Documents: TypeAlias = Annotated[
    list[str | dict[Literal["text"], str]], Field(min_length=1, max_length=MAX_DOCUMENTS_PER_JOB)
]


def _as_it_is(value: Any) -> Any:
    """The contract's own model looks at it, in one sentence for all ways in."""
    return value


class RerankBody(Wire):
    """Documents to order by how relevant they are to a query."""

    query: Annotated[Any, BeforeValidator(_as_it_is, json_schema_input_type=str)]
    documents: Annotated[Any, BeforeValidator(_as_it_is, json_schema_input_type=_Documents)]
    """At most 2,048 strings, or objects with a `text`."""
    model: str | None = None
    """One of `/v1/models`; none means the one that is served."""
    top_n: Annotated[int, Field(gt=0)] | None = None
    """Return the so many most relevant ones; none means all."""
    return_documents: bool | None = None
    """Whether the answer repeats the documents; as in Cohere's API it does not unless asked."""
    max_tokens_per_doc: Annotated[int, Field(gt=0)] | None = None
    """Read no more than so many tokens of a document."""
    truncate: bool | None = None
    """False: refuse what is longer than the model reads, instead of cutting it."""


async def rerank(call: Call) -> Response:
    body = parse_request(RerankBody, call.json())
    payload = {name: value for name, value in body.model_dump().items() if value is not None}
    parse_request(RerankRequest, payload)
    job_id = await submit(call, Order("rerank", payload, ENDPOINT))
    if wants_no_wait(call):
        return accepted(job_id)
    result = await reranked(call, job_id)
    return json_answer(ranking(result, job_id), headers={"X-Job-Id": job_id})


def ranking(result: RerankResult, job_id: str) -> dict[str, Any]:
    """The answer: Cohere's `id`, `results` and `meta`, Jina's `model` and `usage`."""
    tokens = result.usage.prompt_tokens
    return {
        "id": job_id,
        "model": result.model,
        "results": [each.model_dump(exclude_none=True) for each in result.results],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"tokens": {"input_tokens": tokens}},
    }
