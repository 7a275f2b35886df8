"""What each role runs: its engine and its batcher, as the settings say. What only one role needs is imported for it
alone: a worker that generates computes no vectors, and holds no numpy."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from impetus_backends.dispatcher import embedding_tokenizer, pair_tokenizer
from impetus_backends.engine_config import EngineConfig, Fitting
from impetus_backends.machine.hardware import identify, read_machine
from impetus_producer.contract import ServedModel, WorkerRecord

if TYPE_CHECKING:
    from impetus_backends.protocol import EngineInfo

    from .allowed import Allowed
    from .batches.batcher import Batcher
    from .batches.reading.long_jobs import Elsewhere
    from .batches.reading.requests import GenerationRequests
    from .batches.reading.rows import EmbeddingRequests, RerankRequests
    from .settings import WorkerSettings


DEFAULT_MAX_CONCURRENT = 16
"""Generations of an engine that measures nothing."""
_LEAST_BATCH_TEXTS, _TOKENS_A_TEXT = 256, 64
"""The most texts in a batch: so many, and where its tokens are many as many as have them."""


def import_for(role: str) -> None:
    """What only this role needs, before the loop runs."""
    needs = ("generation", "reading.requests") if role == "generation" else ("embedding", "reading.rows", "results")
    for module in needs:
        import_module(f"{__package__}.batches.{module}")


def engine_config(settings: WorkerSettings) -> EngineConfig:
    return EngineConfig(
        kind=settings.role,
        model=settings.model,
        backend=settings.backend,
        more_models=settings.more_models,
        max_concurrent=settings.max_concurrent_generations or DEFAULT_MAX_CONCURRENT,
        longest_batch_s=settings.max_batch_ms / 1e3 if settings.max_batch_tokens is None else None,
        most_batch_tokens=settings.max_batch_tokens,
        fitting=Fitting(settings.fit_after_texts, settings.fit_look_s) if settings.fit_after_texts else None,
        measure_rows=settings.max_concurrent_generations is None,
        watch_memory=True,
        memory_limit_bytes=int(settings.memory_limit_gb * 2**30) if settings.memory_limit_gb else None,
        prefix_cache_bytes=settings.prefix_cache_mb * 2**20,
        prefix_cache_dir=settings.prefix_cache_dir,
        prefix_cache_dir_bytes=settings.prefix_cache_dir_mb * 2**20,
        prefill_tokens=settings.prefill_tokens,
        served_names=settings.served_names if settings.role == "generation" else (),
        context_tokens=settings.context_tokens,
        max_answer_tokens=settings.max_answer_tokens,
        special_tokens=settings.special_tokens,
        adapters=tuple((name, folder) for name, _, folder in (each.partition("=") for each in settings.adapters)),
        kv_bits=settings.kv_bits,
        lookup_tokens=settings.lookup_tokens,
        quantize=settings.generation_quantize,
        upstream=settings.upstream,
        wired_memory=settings.wired_memory,
        simulated_a_s=settings.simulated_a_ms / 1e3,
        simulated_b_s=settings.simulated_b_us / 1e6,
        hardware=read_machine(Path(settings.hardware)) if settings.hardware else None,
    )


def worker_record(settings: WorkerSettings, info: EngineInfo) -> WorkerRecord:
    """What a worker says of itself to the others, once its engine has loaded."""
    machine = read_machine(Path(settings.hardware)) if settings.hardware else identify()
    return WorkerRecord(
        name=settings.name,
        role=settings.role,
        model=info.model,
        aliases=info.model_aliases,
        more_models=tuple(ServedModel(name=other.model, aliases=other.model_aliases) for other in info.others),
        backend=info.backend,
        device=info.device,
        neural_engine=info.neural_engine,
        machine=machine.chip,
        note="; ".join(each for each in (info.note, info.measured) if each) or None,
        ttl_s=settings.record_ttl_s,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def make_requests(info: EngineInfo, allowed: Allowed) -> EmbeddingRequests | RerankRequests | GenerationRequests:
    """What reads the requests to an engine that has loaded."""
    if info.kind != "generation":
        return _row_requests(info, allowed)
    from .batches.reading.requests import GenerationRequests

    return GenerationRequests(info, allowed)


def _row_requests(info: EngineInfo, allowed: Allowed) -> EmbeddingRequests | RerankRequests:
    from .batches.reading.rows import EmbeddingRequests, RerankRequests

    models = (info, *info.others)
    if info.kind == "rerank":
        return RerankRequests(info, [pair_tokenizer(each) for each in models], allowed)
    return EmbeddingRequests(info, [embedding_tokenizer(each) for each in models], allowed)


def make_batcher(settings: WorkerSettings, info: EngineInfo, elsewhere: Elsewhere | None = None) -> Batcher:
    """The batcher for an engine that has loaded. `elsewhere`: reads the long jobs; without one it does."""
    if settings.role == "generation":
        from .batches.generation import GenerationBatcher

        return GenerationBatcher(
            info,
            worker=settings.name,
            max_concurrent=info.max_concurrent or settings.max_concurrent_generations or DEFAULT_MAX_CONCURRENT,
            allowed=settings.allowed,
            elsewhere=elsewhere,
        )
    from .batches.embedding import EmbeddingBatcher
    from .batches.planning.cost import Costs
    from .batches.results import EmbeddingResults, RerankResults

    tokens = settings.max_batch_tokens or info.batch_tokens
    return EmbeddingBatcher(
        _row_requests(info, settings.allowed),
        (RerankResults if settings.role == "rerank" else EmbeddingResults)(settings.name),
        max_batch_texts=settings.max_batch_texts or max(_LEAST_BATCH_TEXTS, tokens // _TOKENS_A_TEXT),
        max_batch_tokens=tokens,
        max_wait_s=settings.max_wait_ms / 1e3,
        costs=Costs(tokens, info.model, info.curve),
        elsewhere=elsewhere,
    )
