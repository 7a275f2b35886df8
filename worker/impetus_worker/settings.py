"""What a worker is told: frozen data that crosses from the command line to the supervisor to each worker process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

from .allowed import Allowed

Role = Literal["embedding", "generation", "rerank"]
ROLES: tuple[Role, ...] = ("embedding", "generation", "rerank")
EMBEDDING_BACKENDS = ("auto", "coreml", "coreml-emulated", "coreai", "mlx", "coreml+mlx", "cpu", "numpy", "simulated")
RERANK_BACKENDS = ("auto", "mlx", "cpu", "numpy", "simulated")
GENERATION_BACKENDS = ("auto", "mlx", "openai", "simulated")
DEFAULT_MAX_BATCH_MS = 200.0
GENERATION_RECIPES = ("4bit", "8bit", "mixed_4_6", "mxfp4", "nvfp4")
PREFERENCES = ("auto", "speed", "energy")
SPECIAL_TOKENS = ("control", "text")
QUANTIZE_AT_LOAD = ("auto", "none", *GENERATION_RECIPES)

DEFAULT_LEASE_S = 20
"""A dead worker's jobs are back on the queue within this and a quarter of it."""

RECORD_TTL_S = 10.0
"""The others believe a dead worker to be alive for so long."""
RECORD_RENEW_S = 2.0
"""So often a worker says that it lives, and looks whether others do."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One worker process: one role, one model, one device."""

    redis_urls: tuple[str, ...]
    """It claims from all of these servers, by turns."""
    role: Role
    name: str
    """The worker's name in RQ, different for each process."""
    model: str | None = None
    """A folder or a Hugging Face id; none means the default for this machine."""
    more_models: tuple[str, ...] = ()
    """Models besides that jobs may name, each loaded when one does."""
    backend: str = "auto"
    upstream: str | None = None
    """Of the generation backend `openai`: the URL of the server that jobs are forwarded to. Without a secret."""
    memory_limit_gb: float | None = None
    """What models and their work may take; none means 75 % of the machine's memory."""
    prefix_cache_mb: int = 512
    prefix_cache_dir: str | None = None
    """A folder for beginnings of prompts, where they survive a restart; none means none."""
    prefix_cache_dir_mb: int = 4096
    prefill_tokens: int | None = None
    """Prompt tokens read in one step; none means what suits the machine."""
    max_batch_texts: int | None = None
    """None: as many as suit the tokens of a batch."""
    max_batch_tokens: int | None = None
    """Padded tokens a batch may cost; none means what suits the backend, by a measurement when the model has loaded."""
    max_batch_ms: float = DEFAULT_MAX_BATCH_MS
    """How long a batch may take that the measurement makes larger than usual."""
    max_wait_ms: float = 5.0
    fit_after_texts: int | None = None
    """Of embedding: after so many texts, shapes that suit them better are looked for; none means never."""
    fit_look_s: float = 60.0
    max_concurrent_generations: int | None = 16
    """None: as many as a measurement says, when the model has loaded."""
    served_names: tuple[str, ...] = ()
    """Of generation: further names of the model; results carry the first."""
    context_tokens: int | None = None
    """Of generation: what models read at most; none means what their files say."""
    max_answer_tokens: int = 4096
    """Of an answer whose request does not say."""
    special_tokens: str = "control"
    """What a model's special tokens are in messages that do not say: `SPECIAL_TOKENS`."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters of the generation model, as NAME=FOLDER."""
    kv_bits: int | None = None
    """In which generation models keep keys and values; none means as they compute them."""
    lookup_tokens: int = 0
    """The most that are drafted of what a generation says that runs alone; 0 means none."""
    generation_quantize: str = "auto"
    """What is done, when it loads, to a generation model that comes unquantised; `auto` goes by the machine."""
    burst: bool = False
    allow_callbacks: tuple[str, ...] = ()
    allow_webhooks: tuple[str, ...] = ()
    lease_s: int = DEFAULT_LEASE_S
    simulated_a_ms: float = 4.0
    simulated_b_us: float = 20.0
    hardware: str | None = None
    """A file that describes the machine to run as; none means this one."""
    record_ttl_s: float = RECORD_TTL_S
    record_renew_s: float = RECORD_RENEW_S
    wired_memory: bool = False
    """Whether MLX may wire memory for the GPU."""
    allow_sleep: bool = False
    """Whether the machine may fall asleep by itself while jobs run."""
    stay_awake_on_battery: bool = False
    prefer: str = "auto"
    """`PREFERENCES`: whether embeddings are left to a Neural Engine where one serves, or shared by speed."""
    bulk_from_charge: int = 20
    """On battery no bulk is taken below so many percent of its charge."""
    begun_fd: int | None = None
    """The inherited descriptor of the note that says which jobs have begun (`host.begun`)."""

    @property
    def allowed(self) -> Allowed:
        return Allowed(self.allow_callbacks, self.allow_webhooks)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerSettings:
        values = json.loads(text)
        for name in ("redis_urls", "allow_callbacks", "allow_webhooks", "more_models", "served_names", "adapters"):
            values[name] = tuple(values[name])
        return cls(**{field.name: values[field.name] for field in fields(cls)})
