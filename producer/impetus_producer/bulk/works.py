"""Kinds of work on documents: what is sent for them, what comes back, and by what key it is kept.

Knows the contract and documents. Knows no Redis.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from .. import contract
from ..contract import EmbeddingRequest, EmbeddingResult
from ..documents import Document, FailedDocument
from ..enqueueing import jobs
from ..enqueueing.requests import InputType, embedding_payload
from ..enqueueing.texts import text_refusal
from ..errors import ResultTimeoutError
from .kept.store import Answer, Served

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from ..client import Producer
    from ..documents import DocumentId
    from ..handles import JobHandle

KEY_BYTES = 16
ON_DEVICE = "documents on "
"""Before a device's name, in what is counted: how many documents it made."""
_WAIT_S = 0.5
NOT_FINITE = "the worker's vector holds numbers not finite"
MODEL_QUESTION = "Which model is this?"
"""The text of a job of our own, of whose answer the model's name and fingerprint matter alone."""


@dataclass(frozen=True, slots=True)
class EmbeddedDocument:
    """A document's vector, float32, and by which model."""

    id: DocumentId
    vector: np.ndarray | list[float]
    model: str
    fingerprint: str


Embedded: TypeAlias = EmbeddedDocument | FailedDocument
OutcomeT = TypeVar("OutcomeT")


@dataclass(frozen=True, slots=True)
class Result:
    """What a job made: an answer for each document, or in its place why there is none; and what is to be counted."""

    answers: Sequence[Answer | str]
    usage: Mapping[str, int]


class Work(ABC, Generic[OutcomeT]):
    """What is done with each document. Documents of one key have one answer, whoever asks."""

    queue: ClassVar[str]
    function: ClassVar[str]
    shared_fields: ClassVar[frozenset[str]]
    """Of a request: what is the same for all documents, so that a refusal of it ends the run."""
    most_per_job: ClassVar[int]
    label: ClassVar[str]
    """What is being done, in a word."""
    makes: ClassVar[str]
    """What comes of it."""

    @abstractmethod
    def check(self) -> None:
        """Raises `InvalidRequestError` for options that no document could be worked on with."""

    @abstractmethod
    def refusal(self, document: Document) -> str | None:
        """Why the contract does not take this document."""

    @abstractmethod
    def key(self, document: Document) -> bytes: ...

    def size(self, document: Document) -> int:
        """How much of `most_per_job` it takes."""
        return 1

    @abstractmethod
    def payload(self, documents: Sequence[Document]) -> dict[str, Any]: ...

    @abstractmethod
    def read(self, job_id: str, return_value: Any) -> Result:
        """Raises `ImpetusError` where a worker did not keep to the contract."""

    @abstractmethod
    def outcome(self, document: Document, answer: Answer) -> OutcomeT: ...

    @abstractmethod
    def served(self, producer: Producer, while_waiting: Callable[[], None] | None) -> Served:
        """The model that would answer now. Waits for it, at the front of the queue."""


class WorkOfEmbedding(Work[OutcomeT]):
    """What is asked of embedding workers, whatever kind of vectors comes of it."""

    queue: ClassVar[str] = contract.EMBEDDING_BULK_QUEUE
    function: ClassVar[str] = contract.EMBED_FUNCTION
    shared_fields: ClassVar[frozenset[str]] = frozenset(EmbeddingRequest.model_fields) - {"input"}
    most_per_job: ClassVar[int] = contract.MAX_TEXTS_PER_JOB
    label: ClassVar[str] = "Embedding"
    makes: ClassVar[str] = "vectors"


@dataclass(frozen=True, slots=True)
class EmbeddingWork(WorkOfEmbedding[EmbeddedDocument]):
    """A vector for each text."""

    model: str | None = None
    dimensions: int | None = None
    input_type: InputType | None = None
    truncate: bool = True
    prompt_name: str | None = None
    prompt: str | None = None

    def check(self) -> None:
        self._payload(["no text in particular"])

    def refusal(self, document: Document) -> str | None:
        return text_refusal(document.text)

    def key(self, document: Document) -> bytes:
        return text_key(document.text, self.dimensions, self.prompting, self.truncate)

    @property
    def prompting(self) -> object:
        """As it stands in keys."""
        return prompting({name: getattr(self, name) for name in contract.PROMPTINGS})

    def payload(
        self, documents: Sequence[Document], chunks: Sequence[Sequence[tuple[int, int]]] | None = None
    ) -> dict[str, Any]:
        """`chunks`: of each document those that are to have a vector each."""
        return self._payload([document.text for document in documents], chunks)

    def _payload(self, texts: list[str], chunks: Sequence[Sequence[tuple[int, int]]] | None = None) -> dict[str, Any]:
        return embedding_payload(
            texts,
            self.model,
            self.dimensions,
            self.input_type,
            self.truncate,
            "raw",
            chunks=chunks,
            prompt_name=self.prompt_name,
            prompt=self.prompt,
        )

    def read(self, job_id: str, return_value: Any) -> Result:
        result = jobs.read_result(job_id, EmbeddingResult, return_value)
        vectors, model, fingerprint = result.vectors, result.model, result.provenance.fingerprint
        sound = all_finite(vectors)
        answers = [
            Answer(bytes_of(vector), model, fingerprint) if sound or all_finite([vector]) else NOT_FINITE
            for vector in vectors
        ]
        return Result(answers, usage_of(result, len(answers)))

    def outcome(self, document: Document, answer: Answer) -> EmbeddedDocument:
        return EmbeddedDocument(document.id, vector_of(answer.value), answer.model, answer.fingerprint)

    def served(self, producer: Producer, while_waiting: Callable[[], None] | None) -> Served:
        result: EmbeddingResult = awaited(producer.embed(MODEL_QUESTION, model=self.model), while_waiting)
        return Served(result.model, result.provenance.fingerprint)


def usage_of(result: EmbeddingResult, documents: int) -> dict[str, int]:
    """What is to be counted of a result for so many documents."""
    usage = {name: count for name, count in result.usage if count}
    return {**usage, f"{ON_DEVICE}{result.provenance.device}": documents}


def prompting(request: Mapping[str, Any]) -> object:
    """What an embedding request's fields put before its texts, as it stands in their keys."""
    if input_type := request.get("input_type"):
        return input_type  # alone, as it stood there before there were others
    given = [(name, request[name]) for name in contract.PROMPTINGS if request.get(name) is not None]
    return given[0] if given else None


def text_key(text: str, *options: object) -> bytes:
    """Names a text and what is asked of it."""
    digest = blake2b(repr(options).encode(), digest_size=KEY_BYTES)
    digest.update(text.encode(errors="surrogatepass"))
    return digest.digest()


def vector_of(value: bytes) -> np.ndarray | list[float]:
    try:
        import numpy as np
    except ImportError:
        return array("f", value).tolist()
    return np.frombuffer(value, dtype="<f4")


def bytes_of(vectors: Any) -> bytes:
    """One vector or several as little-endian float32."""
    if not isinstance(vectors, list):
        return vectors.tobytes()  # type: ignore[no-any-return]
    rows = vectors if vectors and isinstance(vectors[0], list) else [vectors]
    return b"".join(array("f", row).tobytes() for row in rows)


def all_finite(vectors: Any) -> bool:
    if isinstance(vectors, list):
        return all(all_finite(row) if not isinstance(row, float) else math.isfinite(row) for row in vectors)
    import numpy as np

    return bool(np.isfinite(vectors).all())


def awaited(handle: JobHandle[Any], while_waiting: Callable[[], None] | None) -> Any:
    """The result of a small job of our own, which is deleted."""
    while True:
        try:
            result = handle.result(_WAIT_S)
        except ResultTimeoutError:
            if while_waiting is not None:
                while_waiting()
        else:
            handle.delete()
            return result
