"""The wire contract, in one place: queue names, function names, requests, results and their limits.

Jobs are ordinary RQ jobs with RQ's JSON serializer. Each names one of two functions and carries one JSON object,
an `EmbeddingRequest` or a `GenerationRequest`; its return value is the matching result, again a JSON object. Any
service can enqueue with plain RQ, knowing nothing but this page.

This module knows no Redis and no RQ. Field names and meanings follow OpenAI's embeddings and chat APIs where those
have them (https://platform.openai.com/docs/api-reference).
"""

from __future__ import annotations

import base64
import json
import sys
from array import array
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    import numpy as np

EMBED_FUNCTION = "impetus_worker.jobs.embed"
GENERATE_FUNCTION = "impetus_worker.jobs.generate"
VECTORS_FIELD = "vectors"
"""Of an entry in RQ's result stream: the vectors of a request for `raw` ones."""

EMBEDDING_QUEUE = "embedding"
EMBEDDING_BULK_QUEUE = "embedding-bulk"
GENERATION_QUEUE = "generation"
GENERATION_BULK_QUEUE = "generation-bulk"
STANDBY_QUEUE = "embedding-standby"
"""Where `rq info` shows the workers that would serve embeddings, and let a Neural Engine do it. Nothing goes there."""
WORKER_RECORD_KEY = "impetus:worker:"
"""Before a worker's name: the key of its `WorkerRecord`, which lives for some seconds unless renewed."""
STREAM_KEY = "impetus:stream:"
"""Before a job's id: the Redis stream of what a generation says while it runs, entries of `StreamField`s."""
STREAM_TTL_S = 3600
"""How long a stream stays after its last entry."""
AWAITED_KEY = "impetus:awaited:"
"""Before a job's id: there for as long as somebody waits for a job that asked for `cancel_if_abandoned`."""
ABANDONED_AFTER_S = 30
"""Whoever waits for such a job sets that key to expire after this, and sets it again well before it does."""
CANCEL_KEY = "impetus:cancel:"
"""Before a job's id: there once somebody wished that the job, which runs, be stopped. Its worker sees to it within
seconds and deletes it when the job ends."""
CANCEL_TTL_S = 24 * 3600
#: A role's queues, the one whose caller is waiting first.
ROLE_QUEUES = {
    "embedding": (EMBEDDING_QUEUE, EMBEDDING_BULK_QUEUE),
    "generation": (GENERATION_QUEUE, GENERATION_BULK_QUEUE),
}
BULK_QUEUES = frozenset({EMBEDDING_BULK_QUEUE, GENERATION_BULK_QUEUE})

MAX_TEXT_BYTES = 10_000_000
"""The longest single text or prompt, in bytes of UTF-8."""
MAX_TEXTS_PER_JOB = 2048
"""The most texts one embedding job may carry (OpenAI's limit)."""
MAX_PAYLOAD_BYTES = 64_000_000
"""The largest job payload a worker reads, after decompression."""

MAX_SCHEMA_BYTES = 100_000
"""The largest JSON schema that a request may ask its answer to keep to."""

DEFAULT_RESULT_TTL_S = 3600
"""How long a result waits in Redis to be fetched."""
DEFAULT_FAILURE_TTL_S = 7 * 24 * 3600
"""How long a failed job and its reason are kept."""
DEFAULT_TIMEOUT_S = 600
"""How long a job may run once its first batch has started."""


def _invalid(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("invalid", "{sentence}", {"sentence": sentence})


def _checked_text(value: Any, what: str = "the text") -> str:
    if not isinstance(value, str):
        raise _invalid(f"{what} must be a string, not {json_type(value)}")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise _invalid(f"{what} holds half a surrogate pair, which is no text") from None
    if size > MAX_TEXT_BYTES:
        raise _invalid(f"{what} is longer than {MAX_TEXT_BYTES:,} bytes of UTF-8")
    return value


def _checked_input(value: Any) -> list[str]:
    if isinstance(value, str):
        return [_checked_text(value)]
    if not isinstance(value, list | tuple):
        raise _invalid(f"must be a string or a list of strings, not {json_type(value)}")
    if not value:
        raise _invalid("the list is empty: send at least one text")
    if len(value) > MAX_TEXTS_PER_JOB:
        raise _invalid(f"{len(value)} texts are more than the {MAX_TEXTS_PER_JOB} a job may carry")
    return [_checked_text(text, f"item {index}") for index, text in enumerate(value)]


def json_type(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


class _Wire(BaseModel):
    # defer_build: services that only enqueue pay for the models they use.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), defer_build=True)


class EmbeddingRequest(_Wire):
    """Texts to embed. Vectors come back in the order of `input`, one each."""

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
    truncate: bool = True
    """Cut a text past the model's length. False: fail the job instead."""


class VectorBlock(_Wire):
    """A matrix of float32: `data` is little-endian bytes in C order, base64 of these, or a list of rows."""

    dtype: Literal["float32"] = "float32"
    shape: tuple[int, int]
    encoding: Literal["base64", "float", "raw"] = "base64"
    data: bytes | str | list[list[float]]

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
            return np.asarray(self.data, dtype=np.float32).reshape(count, width)
        return np.frombuffer(self._bytes(), dtype="<f4").reshape(count, width)

    def _bytes(self) -> bytes:
        assert not isinstance(self.data, list)
        return self.data if isinstance(self.data, bytes) else base64.b64decode(self.data)


class EmbeddingUsage(_Wire):
    prompt_tokens: int
    """Tokens the model read, after truncation, special tokens included."""
    truncated_texts: int = 0
    """How many texts were longer than the model reads."""


class Provenance(_Wire):
    """Where and by what a result was made."""

    worker: str
    backend: str
    """`coreml`, `mlx`, `cpu`, `numpy` or `simulated`."""
    device: str
    fingerprint: str
    """Names weights, pooling, precision and backend: vectors with equal fingerprints may be compared."""
    note: str | None = None
    """What a reader must know, such as that the model is a random one made for tests."""


class EmbeddingResult(_Wire):
    """What an embedding job returns. `vectors` holds the numbers, one row a text."""

    object: Literal["embedding"] = "embedding"
    embeddings: VectorBlock
    model: str
    usage: EmbeddingUsage
    provenance: Provenance

    @property
    def vectors(self) -> np.ndarray | list[list[float]]:
        """(texts, dimensions): a read-only numpy array where numpy is installed, else a list of lists."""
        return self.embeddings.rows()


class Message(_Wire):
    role: Literal["system", "user", "assistant"]
    content: str

    _size = field_validator("content", mode="before")(_checked_text)


def _checked_stop(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class JsonSchema(_Wire):
    """A named JSON schema, as in OpenAI's structured outputs."""

    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    name: str = ""
    description: str = ""
    strict: bool | None = None
    """Taken for OpenAI's sake: an answer keeps to the schema in any case."""

    @field_validator("json_schema")
    @classmethod
    def _small_enough(cls, value: dict[str, Any]) -> dict[str, Any]:
        if (size := len(json.dumps(value))) > MAX_SCHEMA_BYTES:
            raise _invalid(f"the schema's {size:,} bytes are more than the {MAX_SCHEMA_BYTES:,} allowed")
        return value


class ResponseFormat(_Wire):
    """What an answer has to be: any text, some JSON object, or JSON that keeps to a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise _invalid("'json_schema' goes with the type json_schema, and with no other")
        return self

    def schema_text(self) -> str | None:
        """The JSON schema of the answer, as JSON; None where any text will do."""
        if self.type == "text":
            return None
        return json.dumps(self.json_schema.json_schema if self.json_schema is not None else {"type": "object"})


class GenerationRequest(_Wire):
    """A text to continue (`prompt`) or a conversation to answer (`messages`), one of the two."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    prompt: str | None = None
    model: str | None = None
    """One of those the worker serves; none means its default."""
    max_tokens: Annotated[int, Field(gt=0, le=1_000_000)] = 256
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that together make up this probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from so many of the likeliest tokens; 0 from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Draw from tokens at least so probable, as a share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Divides the odds of tokens that stand in the prompt or the answer (https://arxiv.org/abs/1909.05858)."""
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_checked_stop), Field(max_length=16)] = (
        Field(default_factory=list)
    )
    """Text ends before the first of these; it never holds one."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The same seed draws the same tokens, alone or beside strangers."""
    logprobs: bool = False
    """Also return each token with the logarithm of its probability."""
    response_format: ResponseFormat | None = None
    special_tokens: Literal["control", "text"] | None = None
    """What the model's special tokens are where they stand in the content of messages: `control`, as the model knows
    them, so that a text may close its turn, or `text` like any other. None: as the worker is told, else `control`."""
    stream: bool = False
    """Also write the text to the Redis stream `STREAM_KEY` + job id while it is made."""
    cancel_if_abandoned: bool = False
    """Stop it once nobody has waited for it for `ABANDONED_AFTER_S`. Handles say that they wait; whoever enqueues with
    plain RQ sets the key `AWAITED_KEY` + job id."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_size(cls, value: Any) -> Any:
        return value if value is None else _checked_text(value, "the prompt")

    @model_validator(mode="after")
    def _one_source(self) -> GenerationRequest:
        if (self.messages is None) == (self.prompt is None):
            raise _invalid("send either 'prompt' or 'messages', and not both")
        if self.prompt is not None and self.special_tokens == "text":
            raise _invalid("'special_tokens' is about 'messages': a 'prompt' is read as it is")
        return self


class GenerationUsage(_Wire):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """How many of the prompt's tokens were not read again, because an earlier prompt began with them."""


class GenerationTimings(_Wire):
    """Seconds, on the worker's clock."""

    first_token_s: float
    """From the engine's taking the request to its first token."""
    total_s: float


class TokenLogprob(_Wire):
    """One token of an answer, as text; a token that holds only part of a character is \ufffd."""

    token: str
    logprob: float
    """The natural logarithm of its probability, before temperature and the cuts of top_p, top_k and min_p."""


class GenerationResult(_Wire):
    object: Literal["generation"] = "generation"
    text: str
    finish_reason: Literal["stop", "length", "cancelled"]
    """`stop`: it ended by itself or at a stop string; `length`: `max_tokens` ended it; `cancelled`: something else did
    (the user, the timeout, nobody waiting), and this is the text made until then."""
    model: str
    usage: GenerationUsage
    timings: GenerationTimings
    provenance: Provenance
    logprobs: list[TokenLogprob] | None = None


class StreamEvent(StrEnum):
    """What an entry of a token stream is about."""

    START = "start"
    """A run begins. Not the first one: whatever earlier runs said is void."""
    TEXT = "text"
    END = "end"
    """The job is over, and nothing comes after it."""


class StreamField(StrEnum):
    """The fields of an entry in a token stream."""

    EVENT = "event"
    """A `StreamEvent`."""
    RUN = "run"
    """Which run of the job this belongs to: any text, new for each run."""
    AT = "at"
    """With `text`: how many characters of this run's text come before it. An entry may be written twice."""
    TEXT = "text"
    STATUS = "status"
    """With `end`: finished, failed or stopped."""
    RESULT = "result"
    """With `end`, of a job that failed or was stopped: what it had made, a `GenerationResult` as JSON."""


class WorkerRecord(_Wire):
    """What a worker says of itself to the others, and to whoever looks. Fields of later versions are passed over."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """In RQ."""
    role: Literal["embedding", "generation"]
    model: str
    aliases: tuple[str, ...] = ()
    """Every name by which a request may ask for the model."""
    backend: str
    device: str
    neural_engine: bool = False
    """Whether it embeds on a Neural Engine, and so goes before all that do not."""
    serving: bool = True
    """False while its engine loads, or is stuck."""
    engine_deaths: int = 0
    """How often its engine process ended though nobody had told it to; it was started again each time."""
    machine: str = ""
    """The chip."""
    note: str | None = None
    """What there is to know of the backend, such as how much of the model its compute plan places on what."""
    since: str = ""
    """When it started, ISO 8601, UTC."""
    ttl_s: float = 10.0
    """How long this record lives unless it is renewed. What of that is gone tells when it was renewed last, by the
    server's clock alone."""
