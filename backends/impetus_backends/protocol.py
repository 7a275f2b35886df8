"""What a worker may say to an engine, and what it hears back.

An engine holds one model on one device, and is driven by one thread of one process: that thread calls `admit` and
`cancel` whenever it likes and `step` for as long as `pending()` is not zero. Both kinds of engine, embedding and
generation, speak this one protocol, so there is one loop for both. All messages are plain frozen data: they cross a
pipe between processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """Every name by which a request may ask for this model."""
    fingerprint: str
    precision: str
    folder: str = ""
    """Where the model's files are, for whoever tokenises for this engine."""
    dimensions: int = 0
    max_tokens: int = 0
    """The longest input the model reads, in tokens."""
    note: str | None = None
    """What a reader of results must know, such as that the weights are random."""
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
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()
    seed: int | None = None
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one batch: float32 (rows, dimensions), in the order of its rows."""

    id: int
    vectors: np.ndarray
    device_s: float


@dataclass(frozen=True, slots=True)
class Generated:
    id: int
    text: str
    finish_reason: str
    """`stop` or `length`."""
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """One piece of work failed, alone."""

    id: int
    message: str
    permanent: bool = True
    """Whether the same request would fail again."""


Work = EmbeddingWork | GenerationWork
Event = Embedded | Generated | Rejected


class Engine(Protocol):
    """One model on one device. Every method is called by the one thread that made it."""

    @property
    def info(self) -> EngineInfo: ...

    def admit(self, work: Work) -> None:
        """Takes work in. Whatever is wrong with it comes back as a `Rejected` from a later step."""

    def cancel(self, work_id: int) -> None:
        """Forgets work not yet done; an unknown id is no error."""

    def pending(self) -> int:
        """How much work is admitted and not done."""
        ...

    def step(self) -> list[Event]:
        """Runs the device once (a batch, or one decoding step of all that decode) and returns what got done."""
        ...

    def close(self) -> None:
        """Frees the device."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Which engine to make. `backend` is a name, or `auto` to let the dispatcher choose."""

    kind: str
    model: str | None = None
    """A folder or a Hugging Face id; none means the default."""
    backend: str = "auto"
    max_concurrent: int = 16
    """Generations decoding together."""
    simulated_a_s: float = 0.004
    """The simulated backend's time for a batch: a + b * padded tokens, in seconds."""
    simulated_b_s: float = 0.000_02
    hardware: Hardware | None = None
    """The machine to choose for; none means this one."""
