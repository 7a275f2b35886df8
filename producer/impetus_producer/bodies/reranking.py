"""`/v1/rerank`, as Cohere and Jina have it. Sources: https://docs.cohere.com/reference/rerank and
https://jina.ai/reranker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from ..contract import MAX_DOCUMENTS_PER_JOB, RerankRequest
from ..contract.conversation import Asked
from ..contract.elsewhere import OF_RERANKINGS
from ..enqueueing.parsing import parse_request

if TYPE_CHECKING:
    from ..contract import RerankResult

ENDPOINT = "/v1/rerank"
COHERES = "/v2/rerank"
"""Where Cohere's own client asks the same."""

_Documents: TypeAlias = Annotated[
    list[str | dict[Literal["text"], str]], Field(min_length=1, max_length=MAX_DOCUMENTS_PER_JOB)
]


def _as_it_is(value: Any) -> Any:
    """The contract's own model looks at it, in one sentence for all ways in."""
    return value


class RerankBody(Asked):
    """Documents to order by how relevant they are to a query."""

    changes_nothing = OF_RERANKINGS

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


def rerank_payload(body: RerankBody) -> dict[str, Any]:
    """What is sent for it. Raises `InvalidRequestError`."""
    payload = {name: value for name, value in body.model_dump().items() if value is not None}
    parse_request(RerankRequest, payload)
    return payload


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
