"""Which backend serves here, and why: the one place that knows them all.

Policy: embeddings go to Core ML, then MLX, then ONNX Runtime on Apple silicon, and to ONNX Runtime elsewhere, with
numpy as the last resort; generation goes to MLX. The first that loads and passes its golden check serves. The
simulated backends serve only when asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import models
from .errors import BackendUnavailableError
from .hardware import Hardware, detect

if TYPE_CHECKING:
    from .protocol import Engine, EngineConfig, EngineInfo

DEFAULT_MODELS = {
    "embedding": models.DEFAULT_EMBEDDING_MODEL,
    "generation": "mlx-community/Qwen2.5-0.5B-Instruct-4bit",  # about 280 MB, Apache-2.0
}

SIMULATED = "simulated"
_PACKAGES = {"coreml": ("coremltools",), "mlx": ("mlx",), "cpu": ("onnxruntime", "onnx"), "numpy": ("numpy",)}
_LM_PACKAGES = ("mlx", "mlx_lm")


@dataclass(frozen=True, slots=True)
class Choice:
    """The backends of one kind, in the order in which they are tried, and what speaks for or against each."""

    candidates: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def first(self) -> str | None:
        return self.candidates[0] if self.candidates else None


@dataclass(frozen=True, slots=True)
class HybridDispatcher:
    """What this machine would serve embeddings and generations with."""

    hardware: Hardware
    embedding_backend: Choice
    lm_backend: Choice


def get_compute_dispatcher(
    hardware: Hardware | None = None, *, embedding: str = "auto", generation: str = "auto"
) -> HybridDispatcher:
    """Looks at the machine and at what is installed. Loads no model: a candidate may still fail its golden check."""
    hardware = hardware or detect()
    return HybridDispatcher(hardware, _embedding_choice(hardware, embedding), _generation_choice(generation))


def _embedding_choice(hardware: Hardware, wanted: str) -> Choice:
    if wanted != "auto":
        return Choice((wanted,), (f"{wanted}: asked for by name",))
    order: tuple[str, ...]
    if hardware.apple_silicon:
        order = ("coreml", "mlx", "cpu", "numpy")
        reasons = ["Apple silicon: Core ML, then the GPU through MLX, then the CPU"]
    else:
        order = ("cpu", "numpy")
        why = "runs under Rosetta" if hardware.rosetta else "is not Apple silicon"
        reasons = [f"this machine {why}: embeddings run on its CPU"]
    candidates = []
    for name in order:
        missing = [package for package in _PACKAGES[name] if find_spec(package) is None]
        if missing:
            reasons.append(f"{name}: not installed (pip install 'impetus-batch[{name}]')")
        else:
            candidates.append(name)
    return Choice(tuple(candidates), tuple(reasons))


def _generation_choice(wanted: str) -> Choice:
    if wanted != "auto":
        return Choice((wanted,), (f"{wanted}: asked for by name",))
    if any(find_spec(package) is None for package in _LM_PACKAGES):
        return Choice((), ("mlx: not installed (pip install 'impetus-batch[mlx]')",))
    return Choice(("mlx",), ("mlx: generation runs through MLX",))


def open_engine(config: EngineConfig) -> Engine:
    """The loaded engine that serves as `config` says; `engine.info.reasons` tell why this backend and no other.

    Raises `ModelError` where the model cannot be had, `BackendUnavailableError` with every reason where no backend can
    serve.
    """
    if config.model is None:
        default = SIMULATED if config.backend == SIMULATED else DEFAULT_MODELS[config.kind]
        config = replace(config, model=default)
    dispatcher = get_compute_dispatcher(
        embedding=config.backend if config.kind == "embedding" else "auto",
        generation=config.backend if config.kind == "generation" else "auto",
    )
    choice = dispatcher.embedding_backend if config.kind == "embedding" else dispatcher.lm_backend
    reasons = list(choice.reasons)
    for name in choice.candidates:
        try:
            return _open(config, name, tuple(reasons))
        except BackendUnavailableError as error:
            reasons.append(f"{name}: {error}")
    raise BackendUnavailableError(f"nothing here can serve {config.kind}: {'; '.join(reasons)}")


def _open(config: EngineConfig, name: str, reasons: tuple[str, ...]) -> Engine:
    assert config.model is not None
    if name == SIMULATED:
        from . import simulated

        if config.kind == "embedding":
            return simulated.open_simulated_embedding(config)
        return simulated.open_simulated_generation(config)
    if config.kind == "embedding":
        from .embedding import backends, engine

        files = models.resolve(config.model)
        return engine.open_engine(backends.make_backend(name, files.folder), files, reasons=reasons)
    from .generation.engine import open_generation_engine

    files = models.resolve(config.model)
    return open_generation_engine(
        files.folder, model_name=files.name, aliases=files.aliases, max_concurrent=config.max_concurrent
    )


def embedding_tokenizer(info: EngineInfo) -> Any:
    """What turns texts into the token rows of this engine: an object with `encode(texts, input_type=...)`."""
    if info.backend == SIMULATED:
        from .simulated import SimulatedTextEncoder

        return SimulatedTextEncoder(info.max_tokens)
    from .embedding.tokens import TextEncoder

    return TextEncoder.load(Path(info.folder))
