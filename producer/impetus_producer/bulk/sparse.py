"""Sparse vectors of documents: the weights of some tokens of the model's vocabulary."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..contract import EmbeddingResult
from ..enqueueing import jobs
from ..enqueueing.requests import embedding_payload
from .kept.store import Answer, Served
from .works import MODEL_QUESTION, EmbeddingWork, Result, WorkOfEmbedding, awaited, text_key, usage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..client import Producer
    from ..contract import SparseVector
    from ..documents import Document, DocumentId


@dataclass(frozen=True, slots=True)
class SparseDocument:
    """A document's tokens and their weights, which are float32, and by which model."""

    id: DocumentId
    indices: Sequence[int]
    values: Sequence[float]
    model: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SparseEmbeddingWork(WorkOfEmbedding[SparseDocument]):
    """A sparse vector for each text, otherwise as `dense` says but for its dimensions."""

    dense: EmbeddingWork

    def check(self) -> None:
        self._payload(["no text in particular"])

    def refusal(self, document: Document) -> str | None:
        return self.dense.refusal(document)

    def key(self, document: Document) -> bytes:
        return text_key(document.text, "sparse", self.dense.prompting, self.dense.truncate)

    def payload(self, documents: Sequence[Document]) -> dict[str, Any]:
        return self._payload([document.text for document in documents])

    def _payload(self, texts: list[str]) -> dict[str, Any]:
        asked = self.dense
        return embedding_payload(
            texts,
            asked.model,
            asked.dimensions,
            asked.input_type,
            asked.truncate,
            output="sparse",
            prompt_name=asked.prompt_name,
            prompt=asked.prompt,
        )

    def read(self, job_id: str, return_value: Any) -> Result:
        result = jobs.read_result(job_id, EmbeddingResult, return_value)
        model, fingerprint = result.model, result.provenance.fingerprint
        answers = [Answer(_packed(vector), model, fingerprint) for vector in result.sparse]
        return Result(answers, usage_of(result, len(answers)))

    def outcome(self, document: Document, answer: Answer) -> SparseDocument:
        half = len(answer.value) // 2
        indices, values = array("i", answer.value[:half]), array("f", answer.value[half:])
        return SparseDocument(document.id, indices.tolist(), values.tolist(), answer.model, answer.fingerprint)

    def served(self, producer: Producer, while_waiting: Callable[[], None] | None) -> Served:
        asked = producer.embed(MODEL_QUESTION, model=self.dense.model, output="sparse")
        result: EmbeddingResult = awaited(asked, while_waiting)
        return Served(result.model, result.provenance.fingerprint)


def _packed(vector: SparseVector) -> bytes:
    """All its indices as int32, and then all its values as float32."""
    return array("i", vector.indices).tobytes() + array("f", vector.values).tobytes()
