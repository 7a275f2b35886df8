"""Which backend serves here, and why: the one place that knows them all.

`policy` gives the order; the first that loads, fits the memory and passes its golden check serves, and `candidates`
lets Core ML serve only where it is the faster one. The simulated backends, and another server of generations, serve
only when asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import models
from .engine_config import OnAttempt, attempting
from .errors import BackendUnavailableError, ModelError
from .generation.metered import MeteredEngine
from .machine.energy import open_meter
from .machine.footprint import MemoryWatch
from .machine.hardware import Hardware, detect
from .machine.policy import (
    TO_BE_PROVEN,
    Absence,
    Choice,
    check_memory,
    embedding_choice,
    generation_choice,
    loader_profile,
    memory_limit_bytes,
    not_installed,
    rerank_choice,
    without_excluded,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .candidates import Means
    from .embedding.engine import EmbeddingEngine
    from .engine_config import EngineConfig
    from .generation.engine import GenerationEngine
    from .generation.models.profiles import ModelLoader
    from .machine.measurements import Measurement
    from .protocol import Engine, EngineInfo

DEFAULT_MODELS = {
    "embedding": models.DEFAULT_EMBEDDING_MODEL,
    "generation": "mlx-community/Qwen2.5-0.5B-Instruct-4bit",  # about 280 MB, Apache-2.0
}

SIMULATED = "simulated"
UPSTREAM = "openai"
"""Of generation: another program, which speaks OpenAI's API."""
_LEAST_SHARE_OF_BATCHES = 1 / 32
"""Of the memory, for each of several models that embed, beside its weights: a batch is short."""
_SIMULATED_DEVICES = {"coreml": "ane", "coreai": "ane", "mlx": "gpu", "cpu": "cpu", "numpy": "cpu"}


@dataclass(frozen=True, slots=True)
class HybridDispatcher:
    """What a machine would serve embeddings, generations and rerankings with."""

    hardware: Hardware
    embedding_backend: Choice
    lm_backend: Choice
    rerank_backend: Choice

    @property
    def memory_limit_bytes(self) -> int | None:
        """The most that a model may need: three quarters of the memory."""
        return memory_limit_bytes(self.hardware)


def get_compute_dispatcher(
    hardware: Hardware | None = None,
    *,
    embedding: str = "auto",
    generation: str = "auto",
    rerank: str = "auto",
    absence: Absence = not_installed,
    measured: Measurement | None = None,
) -> HybridDispatcher:
    """Looks at the machine and at what is installed. Loads no model: a candidate may still fail its golden check.

    `absence` tells what a machine lacks, for asking about another one; `measured` is what was measured on it.
    """
    hardware = hardware or detect()
    return HybridDispatcher(
        hardware,
        embedding_choice(hardware, absence, measured) if embedding == "auto" else _by_name(embedding),
        generation_choice(hardware, absence) if generation == "auto" else _generation_by_name(generation, hardware),
        rerank_choice(hardware, absence) if rerank == "auto" else _by_name(rerank),
    )


def _by_name(wanted: str) -> Choice:
    return Choice((wanted,), (f"{wanted}: asked for by name",))


def _generation_by_name(wanted: str, hardware: Hardware) -> Choice:
    choice = _by_name(wanted)
    if wanted in (SIMULATED, UPSTREAM):
        return choice
    profile, why = loader_profile(hardware)
    return replace(choice, reasons=(*choice.reasons, *why), profile=profile)


def open_engine(config: EngineConfig, on_attempt: OnAttempt | None = None) -> Engine:
    """The loaded engine that serves as `config` says; `engine.info.reasons` tell why this backend and no other.

    `on_attempt` hears the name of each backend before it is opened, and "" when that is over, whatever came of it: so
    whoever watches this process knows which one was being opened when it died. Core ML is still being opened while it
    is timed against another.

    Raises `ModelError` where the model cannot be had, `BackendUnavailableError` with every reason where no backend can
    serve.
    """
    attempt = on_attempt or _unheard
    if config.kind == "generation" and config.backend == UPSTREAM:
        return _open_upstream(config, attempt)
    if config.model is None:
        config = replace(config, model=SIMULATED if config.backend == SIMULATED else default_model(config.kind))
    if config.backend == SIMULATED:
        _check_excluded(config)
        with attempting(attempt, SIMULATED):
            return _open_simulated(config)
    hardware = config.hardware or detect()
    if config.kind == "generation":
        engine, meter = _open_generation(config, hardware, attempt), open_meter()
        return engine if meter is None else MeteredEngine(engine, meter)
    return open_embedding(config, hardware, on_attempt=attempt)


def memory_watch(config: EngineConfig) -> MemoryWatch:
    """Of the process, if it is such an engine's own."""
    limit_bytes = config.memory_limit_bytes or memory_limit_bytes(config.hardware or detect())
    return MemoryWatch(limit_bytes if config.watch_memory else None)


def default_model(kind: str) -> str:
    """Raises `ModelError` for a kind that has none."""
    if kind not in DEFAULT_MODELS:
        raise ModelError(f"there is no default model to {kind} with: name one with --{kind}-model")
    return DEFAULT_MODELS[kind]


def _unheard(backend: str) -> None:
    return


def _check_excluded(config: EngineConfig) -> None:
    """Raises `BackendUnavailableError` for a backend asked for by name that is excluded."""
    for each in config.excluded:
        if each.backend == config.backend:
            raise BackendUnavailableError(f"{each.backend}: {each.reason}; ask for another backend, or for 'auto'")


def _open_upstream(config: EngineConfig, attempt: OnAttempt) -> Engine:
    from .upstream.engine import open_upstream

    _check_excluded(config)
    with attempting(attempt, UPSTREAM):
        return open_upstream(config)


def _open_simulated(config: EngineConfig) -> Engine:
    from . import simulated

    if config.kind == "generation":
        return simulated.open_simulated_generation(config)
    if config.kind == "rerank":
        return simulated.open_simulated_rerank(config)
    if config.hardware is None:
        return simulated.open_simulated_embedding(config)
    # For experiments with fleets: what the policy would have tried first there.
    choice = embedding_choice(config.hardware, absence=lambda name: None)
    return simulated.open_simulated_embedding(config, device=f"simulated {_SIMULATED_DEVICES[choice.candidates[0]]}")


def open_embedding(
    config: EngineConfig, hardware: Hardware, means: Means | None = None, *, on_attempt: OnAttempt | None = None
) -> Engine:
    """`open_engine` for embeddings and rerankers on a given machine; tests give it `means` of their own."""
    from .candidates import EmbeddingCandidates, Means
    from .embedding.devices.backends import make_backend

    means = means or Means(make=partial(make_backend, most_tokens=config.most_batch_tokens))
    _check_excluded(config)
    chosen = get_compute_dispatcher(hardware, embedding=config.backend, rerank=config.backend, absence=means.absence)
    choice = chosen.rerank_backend if config.kind == "rerank" else chosen.embedding_backend
    if not choice.candidates:
        raise _nothing(config.kind, choice.reasons)
    candidates = [
        EmbeddingCandidates(
            name,
            hardware,
            means,
            kind=config.kind,
            excluded=config.excluded,
            longest_batch_s=config.longest_batch_s,
            fitting=config.fitting,
            on_attempt=on_attempt or _unheard,
        )
        for name in (config.model or default_model(config.kind), *config.more_models)
    ]

    def open_one(files: models.ModelFiles, memory_bytes: int | None) -> EmbeddingEngine:
        (found,) = (each for each in candidates if each.files.name == files.name)
        return found.open_best(choice, compared=config.backend == "auto")

    if len(candidates) == 1:
        return open_one(candidates[0].files, None)
    from .pool import ModelPool

    files = _told_apart([each.files for each in candidates])
    return ModelPool(
        files,
        [each.weights_bytes() for each in candidates],
        open_one,
        memory_bytes=config.memory_limit_bytes or memory_limit_bytes(hardware),
        max_concurrent=None,
        others=[each.known(named) for each, named in zip(candidates[1:], files[1:], strict=True)],
        least_share=_LEAST_SHARE_OF_BATCHES,
        watch=memory_watch(config),
    )


def _told_apart(files: Sequence[models.ModelFiles]) -> list[models.ModelFiles]:
    """The models, each with the names that none before it has. Raises `ModelError` where results could not tell them
    apart."""
    told: dict[str, models.ModelFiles] = {}
    for each in files:
        taken = {alias for other in told.values() for alias in other.aliases}
        if each.name in taken:
            raise ModelError(f"two of the models go by the name {each.name}")
        told[each.name] = replace(each, aliases=tuple(alias for alias in each.aliases if alias not in taken))
    return list(told.values())


def measure_embedding(
    model: str | None = None, hardware: Hardware | None = None, means: Means | None = None
) -> Measurement:
    """Times Core ML and Core AI against the best other backend here, and remembers it: the fastest serves from then on.

    Raises `BackendUnavailableError` where there are no two to compare, `OSError` where it cannot be remembered.
    """
    from .candidates import EmbeddingCandidates, Means

    hardware, means = hardware or detect(), means or Means()
    choice = embedding_choice(hardware, means.absence)
    if not set(choice.candidates) & set(TO_BE_PROVEN):
        raise BackendUnavailableError(f"there is no Neural Engine to measure: {'; '.join(choice.reasons)}")
    return EmbeddingCandidates(model or DEFAULT_MODELS["embedding"], hardware, means).measure(choice)


def _open_generation(config: EngineConfig, hardware: Hardware, attempt: OnAttempt) -> Engine:
    _check_excluded(config)
    choice = without_excluded(get_compute_dispatcher(hardware, generation=config.backend).lm_backend, config.excluded)
    if not choice.candidates:
        raise _nothing("generation", choice.reasons)
    files = [models.resolve(name) for name in (config.model or DEFAULT_MODELS["generation"], *config.more_models)]
    if config.served_names:
        files[0] = replace(files[0], name=config.served_names[0], aliases=(*config.served_names, *files[0].aliases))
    adapted = _adapted(config, files)
    loader = generation_loader(config, hardware, choice)
    memory_bytes = config.memory_limit_bytes or memory_limit_bytes(hardware)
    try:
        check_memory(loader.needed_bytes(files[0].folder), files[0].folder, memory_bytes)
    except BackendUnavailableError as error:
        raise _nothing("generation", (*choice.reasons, f"{choice.first}: {error}")) from None
    from .generation.engine import EngineLimits
    from .generation.models.adapters import SharedWeights
    from .generation.opening import open_generation_engine

    assert choice.first is not None
    backend = choice.first

    base, shared = files[0].folder, SharedWeights(loader.load, files[0].folder)
    shared_bytes = loader.needed_bytes(base) if adapted else 0

    def open_one(files: models.ModelFiles, memory_bytes: int | None) -> GenerationEngine:
        shares = adapted and files.folder == base
        if shares and memory_bytes is not None:
            memory_bytes += shared_bytes
        limits = EngineLimits(
            config.max_concurrent,
            config.measure_rows,
            memory_bytes,
            config.prefix_cache_bytes,
            config.prefill_tokens or loader.profile.prefill_tokens,
            prefix_cache_dir=Path(config.prefix_cache_dir) if config.prefix_cache_dir else None,
            prefix_cache_dir_bytes=config.prefix_cache_dir_bytes,
            context_tokens=config.context_tokens,
            special_tokens=config.special_tokens,
            max_answer_tokens=config.max_answer_tokens,
            kv_bits=config.kv_bits,
            lookup_tokens=config.lookup_tokens,
        )
        return open_generation_engine(
            files.folder,
            model_name=files.name,
            aliases=files.aliases,
            limits=limits,
            load=(lambda folder: shared.with_adapter(files.adapter)) if shares else loader.load,
        )

    with attempting(attempt, backend):
        if len(files) == 1 and not adapted:
            return open_one(files[0], memory_bytes)
        from .pool import ModelPool

        # What adapters share is there as long as the engine is, whichever of them is loaded.
        weights = [loader.needed_bytes(each.folder) for each in files]
        weights[0] -= shared_bytes
        return ModelPool(
            [*files, *adapted],
            [*weights, *adapted.values()],
            open_one,
            memory_bytes=memory_bytes - shared_bytes if memory_bytes is not None else None,
            max_concurrent=None if config.measure_rows else config.max_concurrent,
            watch=memory_watch(config),
        )


def _adapted(config: EngineConfig, files: Sequence[models.ModelFiles]) -> dict[models.ModelFiles, int]:
    """The default model with each of its adapters, and the bytes that this takes besides. Raises `ModelError`."""
    if not config.adapters:
        return {}
    from .generation.models.adapters import check_adapter

    taken = {alias for each in files for alias in each.aliases}
    adapted: dict[models.ModelFiles, int] = {}
    for name, where in config.adapters:
        if name in taken:
            raise ModelError(f"--adapter {name}: a model is called so already")
        folder = Path(where)
        adapted[models.ModelFiles(name, files[0].folder, (name,), folder)] = check_adapter(name, folder)
    return adapted


def generation_loader(config: EngineConfig, hardware: Hardware, choice: Choice) -> ModelLoader:
    """What loads generation models as this machine's profile and the configuration say."""
    from .generation.models.profiles import ModelLoader, profile_of

    return ModelLoader(
        hardware, profile_of(choice.profile), config.quantize, config.memory_limit_bytes, config.wired_memory
    )


def _nothing(kind: str, reasons: tuple[str, ...]) -> BackendUnavailableError:
    return BackendUnavailableError(f"nothing here can serve {kind}: {'; '.join(reasons)}")


def pair_tokenizer(info: EngineInfo) -> Any:
    """As `embedding_tokenizer`, of a reranker: an object with `encode(query, documents, max_document_tokens=...)`."""
    if info.backend == SIMULATED:
        from .simulated import SimulatedPairEncoder

        return SimulatedPairEncoder(info.max_tokens)
    from .embedding.texts.pairs import load_pairs

    return load_pairs(Path(info.folder))


def embedding_tokenizer(info: EngineInfo) -> Any:
    """What turns texts into the token rows of this engine: an object with `encode(texts, prompt=...)`."""
    if info.backend == SIMULATED:
        from .simulated import SimulatedTextEncoder

        return SimulatedTextEncoder(info.max_tokens)
    from .embedding.texts.tokens import TextEncoder

    return TextEncoder.load(Path(info.folder))
