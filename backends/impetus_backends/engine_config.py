"""Which engine to make, and who hears what is tried for it. Plain frozen data, as all that crosses the pipe is."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from impetus_backends.machine.hardware import Hardware


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
