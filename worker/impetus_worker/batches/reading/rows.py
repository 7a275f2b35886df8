"""What the jobs ask for whose texts the worker makes into token rows: embeddings and rerankings.

Reads a job wherever it lies: in the loop, or in the process that reads the long ones. Knows nothing of batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from impetus_backends.errors import RequestError
from impetus_producer.contract import (
    EMBED_FUNCTION,
    MAX_PAYLOAD_BYTES,
    RERANK_FUNCTION,
    EmbeddingRequest,
    RerankRequest,
)
from impetus_producer.enqueueing.parsing import parse_request

from ...errors import InvalidRequestError
from .payload import read_payload
from .requests import check_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from impetus_backends.protocol import EngineInfo, Spans

    from ...allowed import Allowed

RequestT = TypeVar("RequestT", EmbeddingRequest, RerankRequest)
EncoderT = TypeVar("EncoderT", bound="TextEncoder | PairEncoder")
TEXTS_AT_ONCE = 64
"""So many go to the tokenizer in one call."""


class EncodedText(Protocol):
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def lost(self) -> int: ...
    @property
    def chunks(self) -> Spans: ...


class TextEncoder(Protocol):
    def prompt(self, input_type: Literal["query", "document"] | None = None, name: str | None = None) -> str:
        """Raises `RequestError`, a predicate of the model, for a name that it does not know."""
        ...

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> Sequence[EncodedText]: ...

    def encode_chunks(
        self, texts: Sequence[tuple[str, Spans]], *, prompt: str | None = None
    ) -> Sequence[EncodedText]: ...


class PairEncoder(Protocol):
    def encode(
        self, query: str, documents: Sequence[str], *, max_document_tokens: int | None = None
    ) -> Sequence[EncodedText]: ...


@dataclass(frozen=True, slots=True)
class EncodedRequest(Generic[RequestT]):
    """A request of which nothing is left to read: its texts are gone, where the result does not repeat them, and each
    has a row instead."""

    request: RequestT
    texts: Sequence[EncodedText]


class RowRequests(ABC, Generic[RequestT, EncoderT]):
    """Of one engine. Every method raises `InvalidRequestError` for what is wrong with a request."""

    function: ClassVar[str]
    texts_field: ClassVar[str]
    """Where the request has the texts that become rows."""

    def __init__(self, info: EngineInfo, encoders: Sequence[EncoderT], allowed: Allowed) -> None:
        """`encoders`: of the engine's models, its own first and then those of `info.others`."""
        self._info = info
        self._models = {alias: model for model in (info, *info.others) for alias in model.model_aliases}
        self._encoders = dict(zip((info.model, *info.more_models), encoders, strict=True))
        self._allowed = allowed

    def model_of(self, request: RequestT) -> EngineInfo:
        """What is known of the model that it asks for."""
        return self._info if request.model is None else self._models[request.model]

    def _encoder(self, request: RequestT) -> EncoderT:
        return self._encoders[self.model_of(request).model]

    @abstractmethod
    def parse(self, fields: Mapping[bytes, bytes], most_bytes: int = MAX_PAYLOAD_BYTES) -> RequestT:
        """The request in RQ's job hash. Raises `LongPayloadError` where it is longer than `most_bytes`."""

    @abstractmethod
    def texts(self, request: RequestT) -> Sequence[Any]:
        """What each row is made of."""

    @abstractmethod
    def alike(self, one: RequestT, other: RequestT) -> bool:
        """Whether texts of both may be tokenised in one call."""

    @abstractmethod
    def without_texts(self, request: RequestT) -> RequestT:
        """What is needed of it once there are rows."""

    def sparse(self, request: RequestT) -> bool:
        """Whether sparse vectors are wanted."""
        return False

    @abstractmethod
    def _rows(self, request: RequestT, texts: Sequence[Any]) -> Sequence[EncodedText]: ...

    def _payload(self, fields: Mapping[bytes, bytes], most_bytes: int) -> Any:
        return read_payload(fields, self.function, self._allowed, most_bytes)

    def encode(self, request: RequestT, texts: Sequence[Any]) -> Sequence[EncodedText]:
        """A row for each of these texts, which may be of several requests that are alike.

        Where the tokenizer cannot read one of them it is not said which.
        """
        try:
            return self._rows(request, texts)
        except BaseException as error:
            # A tokenizer written in Rust panics with an error of its own, which is no `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            model = self.model_of(request).model
            raise InvalidRequestError(f"the tokenizer of {model} fails ({error!s:.200})") from None

    def encode_alone(self, request: RequestT, begun: int = 0) -> list[EncodedText]:
        """Rows for all texts of a request but the first few; says which one no tokenizer can read."""
        rows: list[EncodedText] = []
        all_texts = self.texts(request)
        for start in range(begun, len(all_texts), TEXTS_AT_ONCE):
            texts = all_texts[start : start + TEXTS_AT_ONCE]
            try:
                rows += self.encode(request, texts)
            except InvalidRequestError:
                rows += [self._encode_one(request, start + index, text) for index, text in enumerate(texts)]
        return rows

    def _encode_one(self, request: RequestT, index: int, text: Any) -> EncodedText:
        try:
            (row,) = self.encode(request, [text])
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{self.texts_field}: item {index} cannot be read: {error}") from None
        return row

    def check(self, request: RequestT, texts: Sequence[EncodedText]) -> None:
        """Refuses texts that are longer than the model reads, where the request wants them whole."""
        if request.truncate:
            return
        self._check_lengths(request, texts, "'truncate' is false")

    def _check_lengths(self, request: RequestT, texts: Sequence[EncodedText], why: str) -> None:
        model = self.model_of(request)
        for index, text in enumerate(texts):
            if text.lost:
                raise InvalidRequestError(
                    f"{self.texts_field}: item {index} is longer than the {model.max_tokens} tokens that "
                    f"{model.model} reads, and {why}"
                )

    def read(self, fields: Mapping[bytes, bytes]) -> EncodedRequest[RequestT]:
        """All of it at once, however long that takes."""
        request = self.parse(fields)
        texts = self.encode_alone(request)
        self.check(request, texts)
        return EncodedRequest(self.without_texts(request), texts)


class EmbeddingRequests(RowRequests[EmbeddingRequest, TextEncoder]):
    """A row is a text."""

    function = EMBED_FUNCTION
    texts_field = "input"

    def parse(self, fields: Mapping[bytes, bytes], most_bytes: int = MAX_PAYLOAD_BYTES) -> EmbeddingRequest:
        request = parse_request(EmbeddingRequest, self._payload(fields, most_bytes))
        check_model(request.model, self._info)
        model = self.model_of(request)
        if request.output not in model.outputs:
            said = model.no_sparse if request.output == "sparse" else "makes sparse embeddings alone: ask for these"
            raise InvalidRequestError(f"output: {model.model} {said}")
        if request.dimensions is not None and request.dimensions > model.dimensions:
            raise InvalidRequestError(
                f"dimensions: {model.model} makes vectors of {model.dimensions}, "
                f"and {request.dimensions} were asked for"
            )
        if request.chunks is not None and model.refuses_chunks is not None:
            raise InvalidRequestError(f"chunks: {model.model} makes no vectors of them: {model.refuses_chunks}")
        try:
            self._prompt(request)
        except RequestError as error:
            raise InvalidRequestError(f"prompt_name: {model.model} {error}") from None
        return request

    def texts(self, request: EmbeddingRequest) -> Sequence[Any]:
        return request.input if request.chunks is None else list(zip(request.input, request.chunks, strict=True))

    def alike(self, one: EmbeddingRequest, other: EmbeddingRequest) -> bool:
        if _reads_as(one) == _reads_as(other):
            return True
        if (one.chunks is None) != (other.chunks is None) or self.model_of(one) is not self.model_of(other):
            return False
        return self._prompt(one) == self._prompt(other)

    def check(self, request: EmbeddingRequest, texts: Sequence[EncodedText]) -> None:
        if request.chunks is None:
            super().check(request, texts)
            return
        self._check_lengths(
            request, texts, "chunks are of texts that are read whole: send it in parts, or each chunk as a text"
        )
        for index, text in enumerate(texts):
            for number, (begin, end) in enumerate(text.chunks):
                if begin == end:
                    raise InvalidRequestError(f"{self.texts_field}: item {index} has no token in its chunk {number}")

    def sparse(self, request: EmbeddingRequest) -> bool:
        return request.output == "sparse"

    def without_texts(self, request: EmbeddingRequest) -> EmbeddingRequest:
        return request.model_copy(update={"input": []})

    def _rows(self, request: EmbeddingRequest, texts: Sequence[Any]) -> Sequence[EncodedText]:
        encoder = self._encoder(request)
        encode = encoder.encode if request.chunks is None else encoder.encode_chunks
        return encode(texts, prompt=self._prompt(request))

    def _prompt(self, request: EmbeddingRequest) -> str:
        if request.prompt is not None:
            return request.prompt
        return self._encoder(request).prompt(request.input_type, request.prompt_name)


def _reads_as(request: EmbeddingRequest) -> tuple[object, ...]:
    """What it says of how its texts are tokenised."""
    return request.model, request.input_type, request.prompt_name, request.prompt, request.chunks is None


class RerankRequests(RowRequests[RerankRequest, PairEncoder]):
    """A row is the query and a document."""

    function = RERANK_FUNCTION
    texts_field = "documents"

    def parse(self, fields: Mapping[bytes, bytes], most_bytes: int = MAX_PAYLOAD_BYTES) -> RerankRequest:
        request = parse_request(RerankRequest, self._payload(fields, most_bytes))
        check_model(request.model, self._info)
        return request

    def texts(self, request: RerankRequest) -> Sequence[Any]:
        return request.documents

    def alike(self, one: RerankRequest, other: RerankRequest) -> bool:
        return one is other

    def without_texts(self, request: RerankRequest) -> RerankRequest:
        # A query of ten megabytes is of no more use either.
        return request.model_copy(update={"query": ""} | ({} if request.return_documents else {"documents": []}))

    def _rows(self, request: RerankRequest, texts: Sequence[Any]) -> Sequence[EncodedText]:
        encoder = self._encoder(request)
        return encoder.encode(request.query, texts, max_document_tokens=request.max_tokens_per_doc)
