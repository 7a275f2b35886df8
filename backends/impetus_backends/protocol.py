"""What a worker may say to an engine, and what it hears back.

An engine holds one model on one device, and is driven by one thread of one process: that thread calls `admit` and
`cancel` whenever it likes and `step` for as long as `pending()` is not zero. Both kinds of engine, embedding and
generation, speak this one protocol, so there is one loop for both. All messages are plain frozen data: they cross a
pipe between processes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from impetus_backends.hardware import Hardware


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine turned out to be, once loaded. Published with every result."""

    kind: str
    """`embedding` or `generation`."""
    backend: str
    device: str
    model: str
    """The name results carry."""
    model_aliases: tuple[str, ...]
    """Every name by which a request may ask for this model, or for another that this engine serves."""
    fingerprint: str
    precision: str
    more_models: tuple[str, ...] = ()
    """Those others' names."""
    folder: str = ""
    """Where the model's files are, for whoever tokenises for this engine."""
    dimensions: int = 0
    max_tokens: int = 0
    """The longest input the model reads, in tokens."""
    note: str | None = None
    """What a reader of results must know, such as that the weights are random."""
    max_concurrent: int = 0
    """Of a generation engine: how many requests it decodes together."""
    reasons: tuple[str, ...] = ()
    """Why this backend serves and not another, in the order in which they were tried."""

    @property
    def neural_engine(self) -> bool:
        """Whether it serves from the Neural Engine: a device is called `ane` only where it has earned that."""
        return self.device.removeprefix("simulated ").split(" ")[0] == "ane"


@dataclass(frozen=True, slots=True)
class EmbeddingWork:
    """Token rows to embed as one batch: int32 arrays, special tokens included, none longer than the model reads."""

    id: int
    rows: Sequence[np.ndarray]
    urgent: bool = False
    """Runs before every batch that is not, because somebody is waiting."""


@dataclass(frozen=True, slots=True)
class GenerationWork:
    """One text to continue or conversation to answer."""

    id: int
    prompt: str | None
    messages: tuple[tuple[str, str], ...] | None
    """(role, content) pairs."""
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    schema: str | None = None
    """The JSON schema that the answer keeps to, as JSON."""
    special_tokens: str | None = None
    """What special tokens in messages are: `control` or `text`; none means the engine's default."""
    model: str | None = None
    """One of the engine's aliases; none means its default."""
    stream: bool = False
    """Whether its text is wanted while it is made."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one batch: float32 (rows, dimensions), in the order of its rows."""

    id: int
    vectors: np.ndarray
    device_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """A generation has begun, or has begun anew: what `Progress` said of it before is void."""

    id: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The next piece of a streamed generation's text: whole characters, that nothing later takes back."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """A generation for which there is no memory as long as others run. The engine has forgotten it."""

    id: int


@dataclass(frozen=True, slots=True)
class Parked:
    """A generation waits in the engine until its model is loaded."""

    id: int


@dataclass(frozen=True, slots=True)
class Generated:
    """A generation is over. Times count from `admit`."""

    id: int
    text: str
    finish_reason: str
    """`stop`, `length` or `cancelled`."""
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
    logprobs: tuple[tuple[str, float], ...] | None = None
    """For a request that asked: each token as text, and the natural logarithm of its probability."""


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
    memory_limit_bytes: int | None = None
    """The most that models and what they work on may take; none means 75 % of the machine's memory."""
    prefix_cache_bytes: int = 512 * 2**20
    """How much of that may be kept of prompts, for later ones that begin alike."""
    prefill_tokens: int | None = None
    """Prompt tokens that a generation engine reads in one step; none means what suits the machine."""
    special_tokens: str = "control"
    """Of generation: what they are in messages that do not say (`GenerationWork`)."""
    quantize: str = "auto"
    """Of generation: `generation.profiles.CHOICES`, for models that come unquantised."""
    simulated_a_s: float = 0.004
    """The simulated backend's time for a batch: a + b * padded tokens, in seconds."""
    simulated_b_s: float = 0.000_02
    hardware: Hardware | None = None
    """The machine to choose for; none means this one."""
    excluded: tuple[Excluded, ...] = ()
    """Backends that are passed over."""
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
