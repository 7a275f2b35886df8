"""Reranking: a query and documents, and how relevant each of these is to it.

Names and meanings are those of Cohere's and Jina's rerank APIs, where those have them
(https://docs.cohere.com/reference/rerank, https://jina.ai/reranker).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .conversation import Asked, Told, checked_text, invalid, json_type
from .provenance import Provenance

MAX_DOCUMENTS_PER_JOB = 2048
"""The most documents one job may carry."""


def _checked_query(value: Any) -> str:
    return checked_text(value, "the query")


def _checked_documents(value: Any) -> list[str]:
    if not isinstance(value, list | tuple):
        kind = "a string" if isinstance(value, str) else json_type(value)
        raise invalid(f"must be a list of strings, or of objects with a text, not {kind}")
    if not value:
        raise invalid("the list is empty: send at least one document")
    if len(value) > MAX_DOCUMENTS_PER_JOB:
        raise invalid(f"{len(value)} documents are more than the {MAX_DOCUMENTS_PER_JOB} a job may carry")
    return [_checked_document(document, f"item {index}") for index, document in enumerate(value)]


def _checked_document(value: Any, what: str) -> str:
    if not isinstance(value, dict):
        return checked_text(value, what)
    if value.keys() != {"text"}:
        raise invalid(f"{what}: an object has a text and nothing else, for only text is read")
    return checked_text(value["text"], f"the text of {what}")


class RerankRequest(Asked):
    """Documents to order by how relevant they are to a query. Null says the same as nothing."""

    query: Annotated[str, BeforeValidator(_checked_query)]
    documents: Annotated[
        list[str],
        BeforeValidator(_checked_documents, json_schema_input_type=list[str | dict[Literal["text"], str]]),
    ]
    """At most 2,048, each a string of at most 10 MB or an object with such a `text`."""
    top_n: Annotated[int, Field(gt=0)] | None = None
    """Return the so many most relevant ones; none means all, as does a number larger than there are."""
    return_documents: bool = False
    """Whether the result repeats the documents."""
    model: str | None = None
    """The model's name; none means the one the worker serves."""
    max_tokens_per_doc: Annotated[int, Field(gt=0)] | None = None
    """Read no more than so many tokens of a document; none means as many as the model has room for."""
    truncate: bool = True
    """Cut off what the model has no room for, of the longer of the two first. False: fail the job instead."""

    @model_validator(mode="after")
    def _goes_together(self) -> RerankRequest:
        if not self.truncate and self.max_tokens_per_doc is not None:
            raise invalid("cuts documents, and 'truncate' is false", field="max_tokens_per_doc")
        return self


class _Document(Told):
    text: str


class RankedDocument(Told):
    index: int
    """Its place among the request's documents, from 0."""
    relevance_score: float
    """As the model makes it (sentence-transformers' `CrossEncoder.predict`): between 0 and 1 for most, and for some,
    such as ms-marco-MiniLM, any number. Scores of one model may be compared, those of two may not."""
    document: _Document | None = None


class RerankUsage(Told):
    prompt_tokens: int
    """Tokens the model read, after truncation, special tokens included: the query counts once for each document."""
    truncated_documents: int = 0
    """How many pairs of query and document were longer than what was read of them."""
    truncated_tokens: int = 0
    """About how many tokens were not read of them."""


class RerankResult(Told):
    """What a rerank job returns: the documents by their relevance, the most relevant first."""

    object: Literal["rerank"] = "rerank"
    results: Annotated[list[RankedDocument], Field(fail_fast=True)]
    model: str
    usage: RerankUsage
    provenance: Provenance
