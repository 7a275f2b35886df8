"""What the jobs of a role ask for, and what only the model in service can say about it.

Reads a job wherever it lies: in the loop, or in the process that reads the long ones. Knows nothing of batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from impetus_producer.contract import (
    EMBED_FUNCTION,
    GENERATE_FUNCTION,
    MAX_PAYLOAD_BYTES,
    EmbeddingRequest,
    GenerationRequest,
)
from impetus_producer.parsing import parse_request

from ..errors import InvalidRequestError
from .payload import read_payload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from impetus_backends.protocol import EngineInfo

    from ..allowed import Allowed

TEXTS_AT_ONCE = 64
"""So many go to the tokenizer in one call."""


class EncodedText(Protocol):
    @property
    def ids(self) -> np.ndarray: ...
    @property
    def lost(self) -> int: ...


class TextEncoder(Protocol):
    def encode(
        self, texts: Sequence[str], *, input_type: Literal["query", "document"] | None = None
    ) -> Sequence[EncodedText]: ...


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """An embedding request of which nothing is left to read: its texts are gone, and each has a row instead."""

    request: EmbeddingRequest
    texts: Sequence[EncodedText]


class EmbeddingRequests:
    """Of one engine. Every method raises `InvalidRequestError` for what is wrong with a request."""

    def __init__(self, info: EngineInfo, encoder: TextEncoder, allowed: Allowed) -> None:
        self._info = info
        self._encoder = encoder
        self._allowed = allowed

    def parse(self, fields: Mapping[bytes, bytes], most_bytes: int = MAX_PAYLOAD_BYTES) -> EmbeddingRequest:
        """The request in RQ's job hash. Raises `LongPayloadError` where it is longer than `most_bytes`."""
        payload = read_payload(fields, EMBED_FUNCTION, self._allowed, most_bytes)
        request = parse_request(EmbeddingRequest, payload)
        check_model(request.model, self._info)
        if request.dimensions is not None and request.dimensions > self._info.dimensions:
            raise InvalidRequestError(
                f"dimensions: {self._info.model} makes vectors of {self._info.dimensions}, "
                f"and {request.dimensions} were asked for"
            )
        return request

    def encode(self, request: EmbeddingRequest, texts: Sequence[str]) -> Sequence[EncodedText]:
        """A row for each of these texts, which may be of several requests like this one.

        Where the tokenizer cannot read one of them it is not said which.
        """
        try:
            return self._encoder.encode(texts, input_type=request.input_type)
        except BaseException as error:
            # A tokenizer written in Rust panics with an error of its own, which is no `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise InvalidRequestError(f"the tokenizer of {self._info.model} fails ({error!s:.200})") from None

    def encode_alone(self, request: EmbeddingRequest, begun: int = 0) -> list[EncodedText]:
        """Rows for all texts of a request but the first few; says which one no tokenizer can read."""
        rows: list[EncodedText] = []
        for start in range(begun, len(request.input), TEXTS_AT_ONCE):
            texts = request.input[start : start + TEXTS_AT_ONCE]
            try:
                rows += self.encode(request, texts)
            except InvalidRequestError:
                rows += [self._encode_one(request, start + index, text) for index, text in enumerate(texts)]
        return rows

    def _encode_one(self, request: EmbeddingRequest, index: int, text: str) -> EncodedText:
        try:
            (row,) = self.encode(request, [text])
        except InvalidRequestError as error:
            raise InvalidRequestError(f"input: item {index} cannot be read: {error}") from None
        return row

    def check_lengths(self, request: EmbeddingRequest, texts: Sequence[EncodedText]) -> None:
        """Refuses texts that are longer than the model reads, where the request wants them whole."""
        if request.truncate:
            return
        for index, text in enumerate(texts):
            if text.lost:
                raise InvalidRequestError(
                    f"input: item {index} is longer than the {self._info.max_tokens} tokens that "
                    f"{self._info.model} reads, and 'truncate' is false"
                )

    def read(self, fields: Mapping[bytes, bytes]) -> EncodedRequest:
        """All of it at once, however long that takes."""
        request = self.parse(fields)
        texts = self.encode_alone(request)
        self.check_lengths(request, texts)
        return EncodedRequest(request.model_copy(update={"input": []}), texts)


class GenerationRequests:
    """Of one engine. Every method raises `InvalidRequestError` for what is wrong with a request."""

    def __init__(self, info: EngineInfo, allowed: Allowed) -> None:
        self._info = info
        self._allowed = allowed

    def parse(self, fields: Mapping[bytes, bytes], most_bytes: int = MAX_PAYLOAD_BYTES) -> GenerationRequest:
        """The request in RQ's job hash. Raises `LongPayloadError` where it is longer than `most_bytes`."""
        payload = read_payload(fields, GENERATE_FUNCTION, self._allowed, most_bytes)
        request = parse_request(GenerationRequest, payload)
        check_model(request.model, self._info)
        if not self._info.takes_parts:
            self._check_parts(request)
        return request

    def _check_parts(self, request: GenerationRequest) -> None:
        for at, message in enumerate(request.messages or ()):
            for place, part in enumerate(message.content):
                if part.other is not None:
                    field = f"messages.{at}.content.{place}"
                    raise InvalidRequestError(f"{field}: {part.what}, and this model reads text", field=field)

    def read(self, fields: Mapping[bytes, bytes]) -> GenerationRequest:
        """All of it at once. Its tokens are made in the engine, which has the chat template."""
        return self.parse(fields)


def check_model(asked: str | None, info: EngineInfo) -> None:
    """Raises `InvalidRequestError` when a request asks for a model that this engine does not serve."""
    if asked is not None and asked not in info.model_aliases:
        served = ", ".join((info.model, *info.more_models))
        raise InvalidRequestError(
            f"model: this worker serves {served} and not {asked!r:.200}; start one with "
            f"`impetus-worker run --{info.kind}-model …`"
        )
