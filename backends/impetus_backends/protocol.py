"""What a worker may say to an engine, and what it hears back.

An engine holds one model on one device, and is driven by one thread of one process: that thread calls `admit` and
`cancel` whenever it likes and `step` for as long as `pending()` is not zero. Both kinds of engine, embedding and
generation, speak this one protocol, so there is one loop for both. All messages are plain frozen data: they cross a
pipe between processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine turned out to be, once loaded. Published with every result."""

    kind: str
    """`embedding`, `generation` or `rerank`."""
    backend: str
    device: str
    model: str
    """The name results carry."""
    model_aliases: tuple[str, ...]
    """Every name by which a request may ask for this model, or for another that this engine serves."""
    fingerprint: str
    precision: str
    others: tuple[EngineInfo, ...] = ()
    """What is known of those others before they are loaded, each with its own names alone."""
    folder: str = ""
    """Where the model's files are, for whoever tokenises for this engine."""
    dimensions: int = 0
    """Of dense vectors; 0 of a model that makes none."""
    outputs: tuple[str, ...] = ("dense",)
    """What it makes of a text: `dense`, `sparse` or both."""
    no_sparse: str = "has no head for sparse embeddings"
    """What is to be said of a model that makes no sparse vectors, after its name."""
    max_tokens: int = 0
    """The longest input the model reads, in tokens."""
    batch_tokens: int = 1024
    """Of an engine for batches: how many padded tokens of one suit it."""
    note: str | None = None
    """What a reader of results must know, such as that the weights are random."""
    packs: bool = False
    """Whether it lays several texts in a row, so that those of a batch need not be of like length."""
    curve: tuple[tuple[int, float], ...] = ()
    """What was measured of its batches when it loaded: padded tokens, and the seconds of a batch of them."""
    measured: str | None = None
    """What was measured of it when it loaded, in a sentence."""
    takes_parts: bool = False
    """Of a generation engine: whether messages may hold more than text."""
    max_concurrent: int = 0
    """Of a generation engine: how many requests it decodes together."""
    reasons: tuple[str, ...] = ()
    """Why this backend serves and not another, in the order in which they were tried."""
    refuses_chunks: str | None = None
    """Of an embedding engine: why it makes no vectors of chunks, in a clause; none: it does."""

    @property
    def more_models(self) -> tuple[str, ...]:
        """The names of the others that results carry."""
        return tuple(other.model for other in self.others)

    @property
    def neural_engine(self) -> bool:
        """Whether it serves from the Neural Engine: a device is called `ane` only where it has earned that."""
        return self.device.removeprefix("simulated ").split(" ")[0] == "ane"


Spans: TypeAlias = "Sequence[tuple[int, int]]"
"""Of a row of tokens: where each chunk begins, and where it ends."""


@dataclass(frozen=True, slots=True)
class EmbeddingWork:
    """Token rows to embed as one batch: int32 arrays, special tokens included, none longer than the model reads."""

    id: int
    rows: Sequence[np.ndarray]
    urgent: bool = False
    """Runs before every batch that is not, because somebody is waiting."""
    model: str | None = None
    """One of the engine's aliases; none means its default."""
    output: str = "dense"
    """One of the model's `outputs`."""
    chunks: Sequence[Spans] | None = None
    """For each row which of its tokens each of its vectors is the mean of; empty where it has one vector of the whole.
    None: all are such. Only for engines that do not refuse it."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the pipe as one array: to pickle hundreds of small ones takes longer than some devices do.
        import numpy as np

        joined = np.concatenate(self.rows) if self.rows else None
        lengths = [len(row) for row in self.rows]
        return _unjoined, (joined, lengths, self.id, self.urgent, self.model, self.output, self.chunks)


def _unjoined(joined: np.ndarray, lengths: Sequence[int], number: int, *others: Any) -> EmbeddingWork:
    rows = [joined[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
    return EmbeddingWork(number, rows, *others)


@dataclass(frozen=True, slots=True)
class GenerationWork:
    """One text to continue or conversation to answer. None of a value means that the model's own default holds."""

    id: int
    prompt: str | None
    messages: tuple[Mapping[str, Any], ...] | None
    """As chat templates take them: `role` and `content` (a string; for an engine that takes parts, OpenAI's parts), and
    where there are such `name`, `tool_calls`, `tool_call_id` and `reasoning_content`."""
    max_tokens: int | None = None
    """None: what is left of the model's context, up to the engine's own limit."""
    min_tokens: int = 0
    n: int = 1
    """So many answers, one after another; the seed of each is one more than that before."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    """The model's own end-of-text tokens are never drawn."""
    seed: int | None = None
    deterministic: bool = False
    """Whether no neighbour is to change how the device rounds for it."""
    logprobs: bool = False
    top_logprobs: int = 0
    schema: str | None = None
    """The JSON schema that the answer keeps to, as JSON."""
    special_tokens: str | None = None
    """What special tokens in messages are: `control` or `text`; none means the engine's default."""
    continue_final_message: bool = False
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None
    max_reasoning_tokens: int | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    """As chat templates take them: `{"type": "function", "function": {…}}`."""
    tool_choice: str = "auto"
    """`none`, `auto`, `required`, or `=` and the name of the one to call."""
    parallel_tool_calls: bool = True
    model: str | None = None
    """One of the engine's aliases; none means its default."""
    stream: bool = False
    """Whether its text is wanted while it is made."""


@dataclass(frozen=True, slots=True)
class SparseVector:
    """The weights of some tokens of a vocabulary; of all others they are 0."""

    indices: np.ndarray
    """The tokens' ids, int32, rising."""
    values: np.ndarray
    """float32."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one batch, in the order of its rows: float32 (rows, dimensions); of rows with chunks one for each,
    in their order."""

    id: int
    vectors: np.ndarray
    """Empty where `sparse` is not."""
    device_s: float
    by: EngineInfo | None = None
    """Of an engine of several models: the one that made them."""
    sparse: Sequence[SparseVector] = ()
    """For work that wants these."""
    energy_j: float | None = None
    """What the whole chip used meanwhile; None where nothing measures it."""


@dataclass(frozen=True, slots=True)
class Started:
    """A generation has begun, or has begun anew: what `Progress` said of it before is void."""

    id: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The next piece of a streamed generation: whole characters, that nothing later takes back."""

    id: int
    text: str
    reasoning: str = ""
    """Of what the model thinks before it answers."""
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Deferred:
    """A generation for which there is no memory as long as others run. The engine has forgotten it."""

    id: int


@dataclass(frozen=True, slots=True)
class Parked:
    """A request waits in the engine until its model is loaded."""

    id: int


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the model wants called. `arguments`: JSON."""

    name: str
    arguments: str
    id: str


@dataclass(frozen=True, slots=True)
class Likely:
    """A token as text, the natural logarithm of its probability, and the likeliest tokens of its place."""

    token: str
    logprob: float
    others: tuple[Likely, ...] = ()
    raw: bytes | None = None
    """What it stands for, where it is a part of a character and that is known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the answers of a generation."""

    text: str
    finish_reason: str
    """`stop`, `length`, `tool_calls` or `cancelled`."""
    reasoning: str | None = None
    """What the model thought before it answered; none: it did not."""
    calls: tuple[Call, ...] = ()
    logprobs: tuple[Likely, ...] | None = None
    """For a request that asked."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A generation is over. Times count from `admit`, tokens are those of all its answers."""

    id: int
    answers: tuple[Answer, ...]
    """At least one."""
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    total_s: float
    model: str
    fingerprint: str
    note: str | None = None
    """As in `EngineInfo`, of this model."""
    cached_tokens: int = 0
    """Prompt tokens that an earlier prompt's memory spared it."""
    reasoning_tokens: int = 0
    sampling: Mapping[str, float] = field(default_factory=dict)
    """How tokens were drawn, by names of fields of `GenerationWork`."""
    energy_j: float | None = None
    """Its part of what the whole chip used in the steps that it was in; None where nothing measures it."""

    @property
    def text(self) -> str:
        return self.answers[0].text

    @property
    def finish_reason(self) -> str:
        return self.answers[0].finish_reason


@dataclass(frozen=True, slots=True)
class Rejected:
    """One piece of work failed, alone."""

    id: int
    message: str
    permanent: bool = True
    """Whether the same request would fail again."""


Work = EmbeddingWork | GenerationWork
Event = Embedded | Started | Progress | Deferred | Parked | Generated | Rejected


class Engine(Protocol):
    """One model on one device. Every method is called by the one thread that made it."""

    @property
    def info(self) -> EngineInfo: ...

    def admit(self, work: Work) -> None:
        """Takes work in. Whatever is wrong with it comes back as a `Rejected` from a later step."""

    def cancel(self, work_id: int) -> None:
        """Ends work not yet done; an unknown id is no error.

        A generation then comes back from the next step, as a `Generated` that holds what it had made.
        """

    def pending(self) -> int:
        """How much work is admitted and not done."""
        ...

    def step(self) -> list[Event]:
        """Runs the device once (a batch, or one decoding step of all that decode) and returns what got done."""
        ...

    def close(self) -> None:
        """Frees the device."""
