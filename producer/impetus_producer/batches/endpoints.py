"""What a line of a batch may ask for: its body as a job of ours, and the job's result as the answer to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from .. import contract
from ..bodies import chats, completions, embeddings, reranking
from ..chat_completions import chat_completion
from ..enqueueing.parsing import parse_request
from ..errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..contract import EmbeddingResult, GenerationResult, RerankResult


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`payload` raises `InvalidRequestError` for a body that nobody could answer. `answer` makes JSON of a result, the
    job's id and the body.
    """

    role: str
    payload: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    answer: Callable[[Any, str, Mapping[str, Any]], bytes]

    @property
    def queue(self) -> str:
        """The bulk lane."""
        return contract.ROLE_QUEUES[self.role][1]

    @property
    def function(self) -> str:
        return contract.ROLE_FUNCTIONS[self.role]


def _whole(body: Mapping[str, Any]) -> None:
    if body.get("stream"):
        raise InvalidRequestError("stream: nobody reads along with a batch: leave it out", field="stream")


def _embedding_payload(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return embeddings.embedding_payload(parse_request(embeddings.EmbeddingsBody, body))


def _embedding_answer(result: EmbeddingResult, job_id: str, body: Mapping[str, Any]) -> bytes:
    return b"".join(embeddings.embedding_answer(result, str(body.get("encoding_format") or "float")))


def _chat_payload(body: Mapping[str, Any]) -> Mapping[str, Any]:
    _whole(body)
    return chats.chat_payload(body)[1]


def _chat_answer(result: GenerationResult, job_id: str, body: Mapping[str, Any]) -> bytes:
    return to_json(chat_completion(result, job_id), inf_nan_mode="null")


def _completion_payload(body: Mapping[str, Any]) -> Mapping[str, Any]:
    _whole(body)
    return completions.completion_payload(parse_request(completions.CompletionsBody, body), body)


def _completion_answer(result: GenerationResult, job_id: str, body: Mapping[str, Any]) -> bytes:
    return to_json(completions.text_completion([result], job_id), inf_nan_mode="null")


def _rerank_payload(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return reranking.rerank_payload(parse_request(reranking.RerankBody, body))


def _rerank_answer(result: RerankResult, job_id: str, body: Mapping[str, Any]) -> bytes:
    return to_json(reranking.ranking(result, job_id), inf_nan_mode="null")


ENDPOINTS: Mapping[str, Endpoint] = {
    embeddings.ENDPOINT: Endpoint("embedding", _embedding_payload, _embedding_answer),
    chats.ENDPOINT: Endpoint("generation", _chat_payload, _chat_answer),
    completions.ENDPOINT: Endpoint("generation", _completion_payload, _completion_answer),
    reranking.ENDPOINT: Endpoint("rerank", _rerank_payload, _rerank_answer),
}
"""By URL."""
