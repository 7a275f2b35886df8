"""Late chunking: a document goes to the model as a whole, and comes back as a vector for each of its chunks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..contract import MAX_TEXTS_PER_JOB, EmbeddingResult
from ..documents import ChunkedDocument
from ..enqueueing import jobs
from ..errors import ImpetusError
from .kept.store import Answer
from .works import (
    NOT_FINITE,
    EmbeddedDocument,
    EmbeddingWork,
    Result,
    WorkOfEmbedding,
    all_finite,
    bytes_of,
    text_key,
    usage_of,
    vector_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..client import Producer
    from ..documents import Document, DocumentId
    from .kept.store import Served


@dataclass(frozen=True, slots=True)
class EmbeddedChunks:
    """A document's vectors, one for each of its chunks."""

    id: DocumentId
    vectors: Sequence[Any]
    model: str
    fingerprint: str

    def apart(self) -> list[EmbeddedDocument]:
        return [EmbeddedDocument(self.id, vector, self.model, self.fingerprint) for vector in self.vectors]


@dataclass(frozen=True, slots=True)
class LateEmbeddingWork(WorkOfEmbedding[EmbeddedChunks]):
    """The vectors of `ChunkedDocument`s, as `whole` says but for their truncation: none is cut."""

    whole: EmbeddingWork

    def check(self) -> None:
        self.whole.check()

    def refusal(self, document: Document) -> str | None:
        if (count := len(_chunks(document))) > MAX_TEXTS_PER_JOB:
            return f"it comes to {count:,} chunks, and {MAX_TEXTS_PER_JOB:,} is the most of a text that is read whole"
        return self.whole.refusal(document)

    def key(self, document: Document) -> bytes:
        return text_key(document.text, self.whole.dimensions, self.whole.prompting, "late", _chunks(document))

    def size(self, document: Document) -> int:
        return len(_chunks(document))

    def payload(self, documents: Sequence[Document]) -> dict[str, Any]:
        return self.whole.payload(documents, [_chunks(document) for document in documents])

    def read(self, job_id: str, return_value: Any) -> Result:
        result = jobs.read_result(job_id, EmbeddingResult, return_value)
        if result.chunks is None or sum(result.chunks) != len(vectors := result.vectors):
            raise ImpetusError("the worker sent vectors and did not say of which chunks")
        ends = accumulate(result.chunks)
        of_each = [vectors[end - count : end] for end, count in zip(ends, result.chunks, strict=True)]
        answers = [
            Answer(bytes_of(own), result.model, result.provenance.fingerprint) if all_finite(own) else NOT_FINITE
            for own in of_each
        ]
        return Result(answers, usage_of(result, len(answers)))

    def outcome(self, document: Document, answer: Answer) -> EmbeddedChunks:
        count = len(_chunks(document))
        size = len(answer.value) // count
        vectors = [vector_of(answer.value[at * size : (at + 1) * size]) for at in range(count)]
        return EmbeddedChunks(document.id, vectors, answer.model, answer.fingerprint)

    def served(self, producer: Producer, while_waiting: Callable[[], None] | None) -> Served:
        return self.whole.served(producer, while_waiting)


def _chunks(document: Document) -> tuple[tuple[int, int], ...]:
    assert isinstance(document, ChunkedDocument)
    return document.chunks
