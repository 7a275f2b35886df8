"""What a worker may say to an engine, and what it hears back.

An engine holds one model on one device, and is driven by one thread of one process: that thread calls `admit` and
`cancel` whenever it likes and `step` for as long as `pending()` is not zero. Both kinds of engine, embedding and
generation, speak this one protocol, so there is one loop for both. All messages are plain frozen data: they cross a
pipe between processes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from impetus_backends.machine.hardware import Hardware


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
    others: tuple[tuple[str, float], ...] = ()


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


@dataclass(frozen=True, slots=True)
class Excluded:
    """A backend that is not to be tried again, because of what it did before."""

    backend: str
    reason: str
    """A sentence, such as that the process died twice while it was loading."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """When an engine of fixed shapes looks for others: every `look_s`, if `after_texts` more have come."""

    after_texts: int
    look_s: float = 60.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Which engine to make. `backend` is a name, or `auto` to let the dispatcher choose."""

    kind: str
    model: str | None = None
    """A folder or a Hugging Face id; none means the default."""
    backend: str = "auto"
    more_models: tuple[str, ...] = ()
    """Other models that requests may ask for by name, loaded when one does."""
    max_concurrent: int = 16
    """Generations decoding together."""
    measure_rows: bool = False
    """Of MLX: whether how many that are is found out by measurement instead, when the model has loaded."""
    memory_limit_bytes: int | None = None
    """The most that models and what they work on may take; none means 75 % of the machine's memory."""
    prefix_cache_bytes: int = 512 * 2**20
    """How much of that may be kept of prompts, for later ones that begin alike."""
    prefix_cache_dir: str | None = None
    """Of generation: a folder for such beginnings, where they outlive the engine; none means nowhere."""
    prefix_cache_dir_bytes: int = 4 * 2**30
    prefill_tokens: int | None = None
    """Prompt tokens that a generation engine reads in one step; none means what suits the machine."""
    served_names: tuple[str, ...] = ()
    """Of generation: names by which requests may ask for the default model as well; results carry the first."""
    context_tokens: int | None = None
    """Of generation: what the models read at most, whatever their files say."""
    max_answer_tokens: int = 4096
    """Of a generation's answer, where its request does not say."""
    special_tokens: str = "control"
    """Of generation: what they are in messages that do not say (`GenerationWork`)."""
    adapters: tuple[tuple[str, str], ...] = ()
    """Of generation: LoRA adapters of the default model, each a name that requests may ask for and a folder."""
    kv_bits: int | None = None
    """Of generation: in which keys and values are kept, 8 or 4; none means as the model computes them."""
    lookup_tokens: int = 0
    """Of generation: the most that are drafted of what a request says that runs alone; 0 means none."""
    watch_memory: bool = False
    """Whether the process is the engine's own: what it has counts, and models leave when that is near the limit."""
    quantize: str = "auto"
    """Of generation: `generation.profiles.CHOICES`, for models that come unquantised."""
    simulated_a_s: float = 0.004
    """The simulated backend's time for a batch: a + b * padded tokens, in seconds."""
    simulated_b_s: float = 0.000_02
    hardware: Hardware | None = None
    """The machine to choose for; none means this one."""
    excluded: tuple[Excluded, ...] = ()
    """Backends that are passed over."""
    upstream: str | None = None
    """Of the generation backend `openai`: the URL of the server that it forwards to, up to `/v1`."""
    longest_batch_s: float | None = None
    """Of engines for batches: how long one of more than the usual tokens may take. None: nothing is measured."""
    most_batch_tokens: int | None = None
    """Of engines for batches: the most padded tokens in one, where that was said; one text of more takes no more
    memory for its attention either."""
    fitting: Fitting | None = None
    """Of engines for embeddings; None: shapes stay as they are."""
    wired_memory: bool = False
    """Of generation: whether MLX may wire memory for the GPU."""


OnAttempt: TypeAlias = "Callable[[str], None]"
"""Hears which backend is being opened; "" for none."""


@contextmanager
def attempting(on_attempt: OnAttempt, backend: str) -> Iterator[None]:
    """Says that this backend is being opened, for as long as it is."""
    on_attempt(backend)
    try:
        yield
    finally:
        on_attempt("")
