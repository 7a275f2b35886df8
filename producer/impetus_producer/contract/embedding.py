"""Embedding: texts, and a vector for each, dense or sparse.

Names and meanings are those of OpenAI's embeddings, where those have them
(https://platform.openai.com/docs/api-reference/embeddings).
"""

from __future__ import annotations

import base64
import struct
import sys
from array import array
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from .conversation import Asked, Told, checked_text, invalid, json_type
from .provenance import Provenance

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

MAX_TEXTS_PER_JOB = 2048
"""The most texts one embedding job may carry (OpenAI's limit)."""
MAX_DIMENSIONS = 1_000_000
"""The widest vector that is read back."""
PROMPTINGS = ("input_type", "prompt_name", "prompt")
"""The fields of a request that say what is put before its texts, of which it has one at most."""
MAX_PROMPT_CHARACTERS = 10_000
"""The longest prompt of a request: it is put before each of its texts."""


def _checked_input(value: Any) -> list[str]:
    if isinstance(value, str):
        return [checked_text(value)]
    if not isinstance(value, list | tuple):
        raise invalid(f"must be a string or a list of strings, not {json_type(value)}")
    if not value:
        raise invalid("the list is empty: send at least one text")
    if len(value) > MAX_TEXTS_PER_JOB:
        raise invalid(f"{len(value)} texts are more than the {MAX_TEXTS_PER_JOB} a job may carry")
    return [checked_text(text, f"item {index}") for index, text in enumerate(value)]


def _checked_chunks(value: Any) -> list[list[tuple[int, int]]]:
    if not isinstance(value, list | tuple) or not all(isinstance(chunks, list | tuple) for chunks in value):
        raise invalid("must be a list that has a list of [begin, end] for each text")
    for index, chunks in enumerate(value):
        if not chunks:
            raise invalid(f"item {index} is empty: a text has at least one chunk")
        for span in chunks:
            whole = isinstance(span, list | tuple) and len(span) == 2 and all(type(each) is int for each in span)
            if not whole or not 0 <= span[0] < span[1]:
                raise invalid(f"item {index} has a chunk that is not [begin, end], characters of its text")
    if (count := sum(map(len, value))) > MAX_TEXTS_PER_JOB:
        raise invalid(f"{count} chunks are more than the {MAX_TEXTS_PER_JOB} a job may carry")
    return [[(begin, end) for begin, end in chunks] for chunks in value]


def _checked_prompt(value: Any) -> str:
    prompt = checked_text(value, "the prompt")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise invalid(f"the prompt is longer than {MAX_PROMPT_CHARACTERS:,} characters")
    return prompt


class EmbeddingRequest(Asked):
    """Texts to embed. Vectors come back in the order of `input`, one each, or one for each of their `chunks`."""

    input: Annotated[list[str], BeforeValidator(_checked_input)]
    """A string, or a list of at most 2,048 strings of at most 10 MB each."""
    model: str | None = None
    """The model's name; none means the one the worker serves."""
    dimensions: Annotated[int, Field(gt=0)] | None = None
    """Keep only the first so many dimensions (for models trained for that), normalised again."""
    encoding_format: Literal["base64", "float", "raw"] = "base64"
    """`base64`: a block of little-endian float32 (2.7 KB in Redis for 384 dimensions); `float`: JSON numbers (11 KB);
    `raw`: the block itself (1.5 KB), in the field `vectors` of the entry in RQ's result stream, beside the return
    value. `impetus_producer` reads all three; RQ's own `return_value()` shows the first two."""
    input_type: Literal["query", "document"] | None = None
    """Prefixes the prompt that the model's own files state for this kind of text, where they state one."""
    prompt_name: Annotated[str, Field(max_length=256)] | None = None
    """Prefixes the prompt that the model's own files state under this name, as sentence-transformers'
    `encode(prompt_name=...)` does: a name that they do not have fails the job."""
    prompt: Annotated[str, BeforeValidator(_checked_prompt)] | None = None
    """Prefixes this, whatever the model's files state, as sentence-transformers' `encode(prompt=...)` does; an empty
    one means none, not even the model's default. At most 10,000 characters. Of `input_type`, `prompt_name` and
    `prompt` a request has one at most."""
    truncate: bool = True
    """Cut a text past the model's length. False: fail the job instead."""
    output: Literal["dense", "sparse"] = "dense"
    """`sparse`: weights of some tokens of the model's vocabulary, from a model with a head for them, such as SPLADE's
    or bge-m3's. These go by the tokens' ids, and `dimensions` and `encoding_format` are no matter of theirs."""
    chunks: Annotated[list[list[tuple[int, int]]], BeforeValidator(_checked_chunks)] | None = None
    """Late chunking (arXiv:2409.04701): for each text where its chunks begin and end, in characters. The model reads
    the whole text, and the vector of each chunk is the mean of its tokens' states. For models that pool by the mean;
    a text that is longer than the model reads fails the job."""

    @model_validator(mode="after")
    def _has_one_prompt(self) -> EmbeddingRequest:
        if self.model_fields_set.isdisjoint(PROMPTINGS):
            return self
        given = [name for name in PROMPTINGS if getattr(self, name) is not None]
        if len(given) > 1:
            raise invalid(f"says what to put before texts, and so does '{given[0]}': give one of them", field=given[1])
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> EmbeddingRequest:
        if self.output == "sparse":
            for field, usual in (("dimensions", None), ("encoding_format", "base64"), ("chunks", None)):
                if getattr(self, field) != usual:
                    raise invalid("is for dense vectors, and 'output' is sparse", field=field)
        return self

    @model_validator(mode="after")
    def _has_chunks_of_each_text(self) -> EmbeddingRequest:
        if self.chunks is None:
            return self
        if len(self.chunks) != len(self.input):
            raise invalid(f"are of {len(self.chunks)} texts, and there are {len(self.input)}", field="chunks")
        for index, (text, chunks) in enumerate(zip(self.input, self.chunks, strict=True)):
            if (end := max(end for _, end in chunks)) > len(text):
                raise invalid(f"item {index} ends at {end}, and its text at {len(text)}", field="chunks")
        return self


# At the first fault: else there would be a complaint about each of millions of numbers.
_Rows: TypeAlias = Annotated[list[Annotated[list[float], Field(fail_fast=True)]], Field(fail_fast=True)]


class VectorBlock(Told):
    """A matrix of float32: `data` is little-endian bytes in C order, base64 of these, or a list of rows, and all of it
    that `shape` says.
    """

    dtype: Literal["float32"] = "float32"
    shape: tuple[Annotated[int, Field(ge=0, le=MAX_TEXTS_PER_JOB)], Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)]]
    """Texts, or chunks, and dimensions."""
    encoding: Literal["base64", "float", "raw"] = "base64"
    data: bytes | str | _Rows

    @model_validator(mode="after")
    def _holds_what_its_shape_says(self) -> VectorBlock:
        count, width = self.shape
        if isinstance(self.data, list):
            if len(self.data) != count or any(len(row) != width for row in self.data):
                raise invalid(f"are not {count} rows of {width} numbers", field="data")
            return self
        try:
            size = len(self._bytes())
        except ValueError:  # also what is no ASCII
            raise invalid("is no base64", field="data") from None
        if size != 4 * count * width:
            raise invalid(f"{size:,} bytes are not {count} rows of {width} float32", field="data")
        return self

    @property
    def texts(self) -> int:
        return self.shape[0]

    @classmethod
    def from_bytes(cls, raw: bytes, shape: tuple[int, int]) -> VectorBlock:
        return cls(shape=shape, data=base64.b64encode(raw).decode("ascii"))

    def rows(self) -> np.ndarray | list[list[float]]:
        """The matrix, (texts, dimensions): a numpy array where numpy is installed, else a list of lists."""
        count, width = self.shape
        try:
            import numpy as np
        except ImportError:
            if isinstance(self.data, list):
                return self.data
            flat = array("f", self._bytes())
            if sys.byteorder == "big":
                flat.byteswap()
            return [flat[row * width : (row + 1) * width].tolist() for row in range(count)]
        if isinstance(self.data, list):
            with np.errstate(over="ignore"):  # what float32 does not hold is infinite
                return np.asarray(self.data, dtype=np.float32).reshape(count, width)
        return np.frombuffer(self._bytes(), dtype="<f4").reshape(count, width)

    def packed_rows(self) -> Iterator[bytes]:
        """Each row as little-endian float32, without numpy."""
        count, width = self.shape
        if isinstance(self.data, list):
            yield from (struct.pack(f"<{width}f", *row) for row in self.data)
            return
        block = self._bytes()
        yield from (block[4 * width * row : 4 * width * (row + 1)] for row in range(count))

    def _bytes(self) -> bytes:
        assert not isinstance(self.data, list)
        return self.data if isinstance(self.data, bytes) else base64.b64decode(self.data, validate=True)


class SparseVector(Told):
    """The weights of some tokens of the model's vocabulary; of all others they are 0."""

    indices: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]
    """The tokens' ids, rising."""
    values: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(fail_fast=True)]

    @model_validator(mode="after")
    def _one_each(self) -> SparseVector:
        if len(self.indices) != len(self.values):
            raise invalid(f"{len(self.values)} values are not one for each of {len(self.indices)} indices")
        return self


class SparseBlock(Told):
    """Sparse vectors, one a text."""

    encoding: Literal["sparse"]
    data: Annotated[list[SparseVector], Field(max_length=MAX_TEXTS_PER_JOB, fail_fast=True)]

    @property
    def texts(self) -> int:
        return len(self.data)


def _kind_of_block(value: Any) -> str:
    encoding = value.get("encoding") if isinstance(value, dict) else getattr(value, "encoding", None)
    return "sparse" if encoding == "sparse" else "dense"


class EmbeddingUsage(Told):
    prompt_tokens: int
    """Tokens the model read, after truncation, special tokens included."""
    truncated_texts: int = 0
    """How many texts were longer than the model reads."""
    truncated_tokens: int = 0
    """About how many tokens of these were not read."""


class EmbeddingResult(Told):
    """What an embedding job returns. `vectors` holds the numbers, one row a text, or a chunk; of a request for sparse
    ones `sparse` does."""

    object: Literal["embedding"] = "embedding"
    embeddings: Annotated[
        Annotated[VectorBlock, Tag("dense")] | Annotated[SparseBlock, Tag("sparse")], Discriminator(_kind_of_block)
    ]
    chunks: list[int] | None = None
    """Where the request named chunks: how many of the rows are each text's."""
    model: str
    usage: EmbeddingUsage
    provenance: Provenance

    @property
    def vectors(self) -> np.ndarray | list[list[float]]:
        """(texts or chunks, dimensions): a read-only numpy array where numpy is installed, else a list of lists.

        Raises `ValueError` where sparse vectors were asked for.
        """
        if isinstance(self.embeddings, SparseBlock):
            raise ValueError("the vectors of this result are sparse: read its 'sparse'")
        return self.embeddings.rows()

    @property
    def sparse(self) -> list[SparseVector]:
        """One a text. Raises `ValueError` where dense vectors were asked for."""
        if isinstance(self.embeddings, VectorBlock):
            raise ValueError("the vectors of this result are dense: read its 'vectors'")
        return self.embeddings.data
