"""From a model's folder to an engine that serves it: loaded, packed as asked, and tried in a batch."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ..protocol import EngineInfo
from .batching import Batching, BatchingFinding, find_batching
from .engine import GenerationEngine
from .memory import weights_bytes
from .models.loader import load
from .quantization.keys_and_values import pack_keys_and_values
from .row_curves import bandwidth_here, remember
from .rows import measure_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .engine import EngineLimits
    from .models.loader import LoadedModel


def open_generation_engine(
    folder: Path,
    *,
    model_name: str,
    aliases: tuple[str, ...],
    limits: EngineLimits,
    load: Callable[[Path], LoadedModel] = load,
) -> GenerationEngine:
    """Loads the model in `folder` with `load`, checks that it batches correctly, and returns its engine.

    Where a model answers differently in a batch its prompts are read one by one, or its requests run one at a time, and
    `info.reasons` says so. The calling thread must be the one that drives the engine. Raises
    `BackendUnavailableError` and `ModelError`.
    """
    loaded = load(folder)
    if limits.context_tokens is not None:
        loaded = replace(loaded, context_tokens=limits.context_tokens, context_known=True)
    if limits.kv_bits is not None:
        loaded = pack_keys_and_values(loaded, limits.kv_bits)
    batches = limits.max_concurrent > 1 or limits.measure_rows
    finding = find_batching(loaded) if batches else BatchingFinding(Batching.TOGETHER)
    curve = None
    if limits.measure_rows and finding.batching is not Batching.ONE_AT_A_TIME:
        bandwidth = bandwidth_here(loaded.device, time.perf_counter)
        curve = measure_rows(loaded, _spare_bytes(loaded, limits), bandwidth=bandwidth)
        remember(model_name, curve)
        limits = replace(limits, max_concurrent=curve.chosen)
    if finding.batching is Batching.ONE_AT_A_TIME:
        limits = replace(limits, max_concurrent=1)
    info = EngineInfo(
        kind="generation",
        backend="mlx",
        device=loaded.device,
        model=model_name,
        model_aliases=aliases,
        fingerprint=loaded.fingerprint,
        precision=loaded.precision,
        max_tokens=loaded.context_tokens,
        note=loaded.note,
        max_concurrent=limits.max_concurrent,
        measured=curve.words if curve is not None else None,
        reasons=(*loaded.reasons, *(each for each in (finding.reason, curve and curve.words) if each)),
    )
    return GenerationEngine(loaded, info, limits, read_apart=finding.batching is Batching.READ_APART)


def _spare_bytes(loaded: LoadedModel, limits: EngineLimits) -> int | None:
    return None if limits.memory_bytes is None else limits.memory_bytes - weights_bytes(loaded.model)
