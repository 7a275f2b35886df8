"""The wire contract, in one place: queue names, function names, requests, results and their limits.

Jobs are ordinary RQ jobs with RQ's JSON serializer. Each names one of three functions and carries one JSON object, an
`EmbeddingRequest`, a `RerankRequest` or a `GenerationRequest`; its return value is the matching result, again a JSON
object. Any service can enqueue with plain RQ, knowing nothing but this page.

Reranking is in `reranking.py`, and the parts of a conversation are in `conversation.py`. This module knows no Redis and
no RQ. Field names and meanings follow OpenAI's embeddings and chat APIs where those have them
(https://platform.openai.com/docs/api-reference).
"""

from __future__ import annotations

import base64
import struct
import sys
from array import array
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from .conversation import MAX_SCHEMA_BYTES as MAX_SCHEMA_BYTES
from .conversation import MAX_TEXT_BYTES as MAX_TEXT_BYTES
from .conversation import (
    MAX_TOOLS,
    Message,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolCall,
    Wire,
    check_tools,
    check_turns,
    checked_text,
    invalid,
    json_type,
    without_nulls,
)
from .provenance import Provenance as Provenance
from .reranking import MAX_DOCUMENTS_PER_JOB as MAX_DOCUMENTS_PER_JOB
from .reranking import RankedDocument as RankedDocument
from .reranking import RerankRequest as RerankRequest
from .reranking import RerankResult as RerankResult
from .reranking import RerankUsage as RerankUsage

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

EMBED_FUNCTION = "impetus_worker.jobs.embed"
GENERATE_FUNCTION = "impetus_worker.jobs.generate"
RERANK_FUNCTION = "impetus_worker.jobs.rerank"
VECTORS_FIELD = "vectors"
"""Of an entry in RQ's result stream: the vectors of a request for `raw` ones."""

EMBEDDING_QUEUE = "embedding"
EMBEDDING_BULK_QUEUE = "embedding-bulk"
GENERATION_QUEUE = "generation"
GENERATION_BULK_QUEUE = "generation-bulk"
RERANK_QUEUE = "rerank"
RERANK_BULK_QUEUE = "rerank-bulk"
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
BATCH_KEY = "impetus:batch:"
"""Before a batch's id: who runs it, a key that expires."""
WAKE_KEY = "impetus:wake:"
"""Before a name: the stream by which tasks of one producer wake the one that listens for them. Nobody else reads it."""
#: A role's queues, the one whose caller is waiting first.
ROLE_QUEUES = {
    "embedding": (EMBEDDING_QUEUE, EMBEDDING_BULK_QUEUE),
    "generation": (GENERATION_QUEUE, GENERATION_BULK_QUEUE),
    "rerank": (RERANK_QUEUE, RERANK_BULK_QUEUE),
}
#: The function that the jobs of a role name.
ROLE_FUNCTIONS = {"embedding": EMBED_FUNCTION, "generation": GENERATE_FUNCTION, "rerank": RERANK_FUNCTION}
OPTIONAL_ROLES = frozenset({"rerank"})
"""Those that a worker has only where it is asked to: nothing is amiss while nobody does and no such job waits."""
BULK_QUEUES = frozenset(bulk for _, bulk in ROLE_QUEUES.values())

MAX_TEXTS_PER_JOB = 2048
"""The most texts one embedding job may carry (OpenAI's limit)."""
MAX_DIMENSIONS = 1_000_000
"""The widest vector that is read back."""
MAX_PAYLOAD_BYTES = 64_000_000
"""The largest job payload a worker reads, after decompression."""

DEFAULT_RESULT_TTL_S = 3600
"""How long a result waits in Redis to be fetched."""
DEFAULT_FAILURE_TTL_S = 7 * 24 * 3600
"""How long a failed job and its reason are kept."""
DEFAULT_TIMEOUT_S = 600
"""How long a job may run once its first batch has started."""


def role_of_queue(queue: str) -> str:
    """The role whose jobs go there; `embedding` for a queue that is none of the contract's."""
    return next((role for role, queues in ROLE_QUEUES.items() if queue in queues), "embedding")


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


class EmbeddingRequest(Wire):
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


# At the first fault: else there would be a complaint about each of millions of numbers.
_Rows: TypeAlias = Annotated[list[Annotated[list[float], Field(fail_fast=True)]], Field(fail_fast=True)]


class VectorBlock(Wire):
    """A matrix of float32: `data` is little-endian bytes in C order, base64 of these, or a list of rows, and all of it
    that `shape` says.
    """

    dtype: Literal["float32"] = "float32"
    shape: tuple[Annotated[int, Field(ge=0, le=MAX_TEXTS_PER_JOB)], Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)]]
    """Texts and dimensions."""
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


class EmbeddingUsage(Wire):
    prompt_tokens: int
    """Tokens the model read, after truncation, special tokens included."""
    truncated_texts: int = 0
    """How many texts were longer than the model reads."""
    truncated_tokens: int = 0
    """About how many tokens of these were not read."""


class EmbeddingResult(Wire):
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


def _checked_stop(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(Wire):
    include_usage: bool = False
    """Taken for OpenAI's sake: a result always has its usage."""
    include_obfuscation: bool = False
    """Taken for OpenAI's sake."""


def _text_alone(value: Any) -> Any:
    if isinstance(value, list) and any(each != "text" for each in value):
        kinds = ", ".join(str(each)[:20] for each in value if each != "text")
        raise invalid(f"{kinds}: this model answers in text")
    return value


def _bias_by_token(value: Any) -> Any:
    """JSON has token ids as strings."""
    if not isinstance(value, dict):
        return value
    made: dict[int, Any] = {}
    for token, bias in value.items():
        if not (isinstance(token, int) or (isinstance(token, str) and token.isascii() and token.isdecimal())):
            raise invalid(f"{str(token)[:20]!r} is no token id")
        if len(str(token)) > 10:
            raise invalid(f"{str(token)[:20]}: no vocabulary has so many tokens")
        made[int(token)] = bias
    return made


class GenerationRequest(Wire):
    """A text to continue (`prompt`) or a conversation to answer (`messages`), one of the two.

    Names and meanings are those of OpenAI's chat completions, as far as they have any here; null says the same as
    nothing. Where a request does not say how to draw tokens, the model's own `generation_config.json` does, and where
    that is silent too, all tokens may be drawn with their own probabilities. The result says what held.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096), AfterValidator(check_turns)] | None = None
    prompt: str | None = None
    model: str | None = None
    """One of those the worker serves; none means its default."""
    max_tokens: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    """None: what is left of the model's context, up to what the worker allows (`--max-answer-tokens`)."""
    max_completion_tokens: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    """The same, by its newer name."""
    min_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """So many come before the text may end by itself."""
    n: Annotated[int, Field(gt=0, le=128)] = 1
    """So many answers, made one after another in one place; the seed of each is one more than that before."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw from the likeliest tokens that together make up this probability."""
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Draw from so many of the likeliest tokens; 0 from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw from tokens at least so probable, as a share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    """Divides the odds of tokens that stand in the prompt or the answer (https://arxiv.org/abs/1909.05858)."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off a token's logit for each time that it stands in the answer."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off a token's logit once it stands in the answer."""
    logit_bias: Annotated[
        dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_bias_by_token), Field(max_length=1024)
    ] = Field(default_factory=dict)
    """Added to the logits of these token ids; -100 bans one, 100 allows no other."""
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(_checked_stop, json_schema_input_type=str | list[str]),
        Field(max_length=16),
    ] = Field(default_factory=list)
    """Text ends before the first of these; it never holds one."""
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=64)] = Field(
        default_factory=list
    )
    """Tokens that end a text as the model's own end-of-text tokens do."""
    ignore_eos: bool = False
    """Go on to `max_tokens`: the model's own end-of-text tokens are never drawn."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed draws the same tokens where the same probabilities are computed: on a CPU always, on a GPU not
    where two tokens are all but equally likely, as how it rounds depends on who decodes beside."""
    deterministic: bool = False
    """Decode in a batch of its own, so that nobody beside it changes how the device rounds: the same request has the
    same text on the same machine. One such job runs at a time, in turn with the others."""
    logprobs: bool = False
    """Also return each token with the logarithm of its probability."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """With `logprobs`: also the so many likeliest tokens of each place."""
    response_format: ResponseFormat | None = None
    special_tokens: Literal["control", "text"] | None = None
    """What the model's special tokens are where they stand in the content of messages: `control`, as the model knows
    them, so that a text may close its turn, or `text` like any other. None: as the worker is told, else `control`."""
    continue_final_message: bool = False
    """The answer goes on from the last message, an assistant's, and holds only what is new."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the model's chat template; one that it does not know has no effect."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """For templates that know it; `none` turns thinking off where it can be turned off."""
    max_reasoning_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Of a model that thinks: after so many tokens its thoughts are brought to an end."""
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(check_tools)] = Field(default_factory=list)
    """What the model may ask to be called."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """`none`: an answer in text; `auto`, the default with tools: as the model likes; `required`: some call; or a call
    of the one that is named."""
    parallel_tool_calls: bool = True
    """False: at most one call."""
    stream: bool = False
    """Also write the text to the Redis stream `STREAM_KEY` + job id while it is made."""
    cancel_if_abandoned: bool = False
    """Stop it once nobody has waited for it for `ABANDONED_AFTER_S`. Handles say that they wait; whoever enqueues with
    plain RQ sets the key `AWAITED_KEY` + job id."""

    # What OpenAI's clients may send and what changes nothing here.
    stream_options: StreamOptions | None = None
    modalities: Annotated[list[str], BeforeValidator(_text_alone)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Literal[False] | None = None
    """Results are kept in Redis for a while, and nowhere else."""
    service_tier: Literal["auto", "default"] | None = None
    verbosity: Literal["medium"] | None = None
    priority: Literal[0] | None = None
    """Order is by queue: `Producer.generate(bulk=True)` waits for all that is not bulk."""
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    functions: None = None
    function_call: None = None

    _nulls = model_validator(mode="before")(without_nulls)

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_size(cls, value: Any) -> Any:
        return value if value is None else checked_text(value, "the prompt")

    @model_validator(mode="after")
    def _goes_together(self) -> GenerationRequest:
        if (self.messages is None) == (self.prompt is None):
            raise invalid("send either 'prompt' or 'messages', and not both")
        if self.max_completion_tokens is not None and self.max_tokens not in (None, self.max_completion_tokens):
            raise invalid("is not max_tokens, which means the same", field="max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise invalid("goes with 'logprobs': true", field="top_logprobs")
        if self.prompt is not None:
            self._check_prompt_alone()
        if self.continue_final_message and self.messages is not None and self.messages[-1].role != "assistant":
            raise invalid("the last message is not an assistant's", field="continue_final_message")
        if isinstance(self.tool_choice, NamedTool):
            if self.tool_choice.function.name not in {tool.function.name for tool in self.tools}:
                raise invalid(f"there is no tool {self.tool_choice.function.name[:100]!r}", field="tool_choice")
        elif self.tool_choice == "required" and not self.tools:
            raise invalid("there are no tools", field="tool_choice")
        if (self.ignore_eos or self.min_tokens) and self.keeps_to_a_form:
            raise invalid("goes with neither ignore_eos nor min_tokens: JSON ends where it is complete",
                          field="response_format")  # fmt: skip
        if self.calls_for_a_tool and self.response_format is not None and self.response_format.type != "text":
            raise invalid("an answer that is a call of a tool has no format", field="response_format")
        return self

    def _check_prompt_alone(self) -> None:
        about_messages = (
            ("special_tokens", self.special_tokens == "text"),
            ("continue_final_message", self.continue_final_message),
            ("chat_template_kwargs", bool(self.chat_template_kwargs)),
            ("reasoning_effort", self.reasoning_effort is not None),
            ("max_reasoning_tokens", self.max_reasoning_tokens is not None),
            ("tools", bool(self.tools)),
        )
        for name, is_there in about_messages:
            if is_there:
                raise invalid(f"'{name}' is about 'messages': a 'prompt' is read as it is", field=name)

    @property
    def most_tokens(self) -> int | None:
        """Of an answer; None where the request does not say."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def keeps_to_a_form(self) -> bool:
        """Whether the answer is JSON, whatever the model would like."""
        return self.calls_for_a_tool or (self.response_format is not None and self.response_format.type != "text")

    @property
    def calls_for_a_tool(self) -> bool:
        """Whether the answer has to be a call."""
        return isinstance(self.tool_choice, NamedTool) or self.tool_choice == "required"


class GenerationUsage(Wire):
    """Of all answers together; the prompt is counted once."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """How many of the prompt's tokens were not read again, because an earlier prompt began with them."""
    reasoning_tokens: int = 0
    """How many of the completion's tokens are thoughts."""


class GenerationTimings(Wire):
    """Seconds, on the worker's clock."""

    first_token_s: float
    """From the engine's taking the request to its first token."""
    total_s: float


class LikelyToken(Wire):
    token: str
    logprob: float


class TokenLogprob(Wire):
    """One token of an answer, as text; a token that holds only part of a character is \ufffd."""

    token: str
    logprob: float
    """The natural logarithm of its probability, before temperature and the cuts of top_p, top_k and min_p."""
    top_logprobs: list[LikelyToken] = Field(default_factory=list, fail_fast=True)
    """The likeliest tokens of its place, the likeliest first."""


FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "cancelled"]


class Choice(Wire):
    """One answer."""

    text: str
    finish_reason: FinishReason
    """`stop`: it ended by itself or at a stop string; `length`: `max_tokens` ended it; `tool_calls`: it wants tools to
    be called; `cancelled`: something else did (the user, the timeout, nobody waiting), and this is what was made until
    then."""
    reasoning_content: str | None = None
    """What a model that thinks thought first. None: it does not, or did not."""
    tool_calls: list[ToolCall] = Field(default_factory=list, fail_fast=True)
    logprobs: Annotated[list[TokenLogprob], Field(fail_fast=True)] | None = None


class GenerationResult(Choice):
    """What a generation returns: its answer, and where `n` asked for more, those in `more_choices`."""

    object: Literal["generation"] = "generation"
    model: str
    usage: GenerationUsage
    timings: GenerationTimings
    provenance: Provenance
    sampling: dict[str, float] = Field(default_factory=dict)
    """By name, how tokens were drawn: what the request said, or the model's own files, or nobody."""
    more_choices: list[Choice] = Field(default_factory=list, fail_fast=True)

    @property
    def choices(self) -> list[Choice]:
        """All answers, `n` of them."""
        return [self, *self.more_choices]


class StreamEvent(StrEnum):
    """What an entry of a token stream is about."""

    START = "start"
    """A run begins. Not the first one: whatever earlier runs said is void."""
    TEXT = "text"
    END = "end"
    """The job is over, and nothing comes after it."""


def channel_name(choice: int, *, reasoning: bool = False) -> str:
    """Of an answer's text, or of what the model thought before it: "", "reasoning", "1", "1/reasoning"."""
    return "/".join(filter(None, (str(choice) if choice else "", "reasoning" if reasoning else "")))


class StreamField(StrEnum):
    """The fields of an entry in a token stream."""

    EVENT = "event"
    """A `StreamEvent`."""
    RUN = "run"
    """Which run of the job this belongs to: any text, new for each run."""
    AT = "at"
    """With `text`: how many characters of this run and channel come before it. An entry may be written twice."""
    TEXT = "text"
    CHANNEL = "channel"
    """With `text`: of what this is a part, where it is not the text of the first answer: `channel_name`."""
    STATUS = "status"
    """With `end`: finished, failed or stopped."""
    RESULT = "result"
    """With `end`, of a job that failed or was stopped: what it had made, a `GenerationResult` as JSON."""


class WorkerRecord(Wire):
    """What a worker says of itself to the others, and to whoever looks. Fields of later versions are passed over."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """In RQ."""
    role: Literal["embedding", "generation", "rerank"]
    model: str
    aliases: tuple[str, ...] = ()
    """Every name by which a request may ask for the model."""
    backend: str
    device: str
    neural_engine: bool = False
    """Whether it embeds on a Neural Engine, and so goes before all that do not."""
    serving: bool = True
    """False while its engine loads, or is stuck."""
    engine_deaths: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """How often its engine process ended though nobody had told it to; it was started again each time."""
    machine: str = ""
    """The chip."""
    note: str | None = None
    """What there is to know of the backend, such as how much of the model its compute plan places on what."""
    since: str = ""
    """When it started, ISO 8601, UTC."""
    ttl_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """How long this record lives unless it is renewed. What of that is gone tells when it was renewed last, by the
    server's clock alone."""
