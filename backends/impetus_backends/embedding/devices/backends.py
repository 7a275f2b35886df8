"""The devices for embeddings that there are, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.embedding.devices.both import BothBackend
from impetus_backends.embedding.devices.coreai.device import CoreAIDevice, mode_here
from impetus_backends.embedding.devices.coreai.form import COREAI
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.coreml.macos import CoreMLDevice
from impetus_backends.embedding.devices.cpu import CPUEmbeddingBackend
from impetus_backends.embedding.devices.mlx import MLXEmbeddingBackend
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.devices.reference import SCORES_BYTES, NumpyEmbeddingBackend, scores_bytes
from impetus_backends.embedding.folder.config import EmbeddingConfig, read_config
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.form import Form

BOTH = "coreml+mlx"
"""The Neural Engine and the GPU of a Mac at once."""
NAMES = ("coreml", "coreml-emulated", "coreai", "mlx", "cpu", "numpy", BOTH)


_PACKAGED: dict[str, tuple[type[CoreMLDevice | EmulatedDevice | CoreAIDevice], Form]] = {
    "coreml": (CoreMLDevice, COREML),
    "coreml-emulated": (EmulatedDevice, COREML),
    "coreai": (CoreAIDevice, COREAI),
}


def make_packaged(
    name: str,
    config: EmbeddingConfig,
    *,
    cache: Path | None = None,
    buckets: Sequence[Bucket] | None = None,
    mode: str | None = None,
) -> PackagedEmbeddingBackend:
    """One of those that run packages, not yet loaded, from a cache in a folder; none means this user's."""
    device, form = _PACKAGED[name]
    mode = mode or (mode_here() if form is COREAI else "none")
    return PackagedEmbeddingBackend(config, device, PackageCache(form, cache), name=name, buckets=buckets, mode=mode)


def open_reference(config: EmbeddingConfig) -> EmbeddingBackend:
    """What packages are measured against, loaded: ONNX Runtime, or numpy where that is not installed."""
    reference: EmbeddingBackend = CPUEmbeddingBackend(config)
    try:
        reference.load()
    except BackendUnavailableError:
        reference = NumpyEmbeddingBackend(config)
        reference.load()
    return reference


def make_backend(
    name: str, model: EmbeddingConfig | Path, *, threads: int | None = None, most_tokens: int | None = None
) -> EmbeddingBackend:
    """The backend of that name, not yet loaded, for a model's folder or its configuration already read.

    `threads` and `most_tokens` are for `cpu` alone: no scores of attention take more than those of one row of so many
    tokens would, however long a text is.

    Raises `BackendUnavailableError` for an unknown name, `ModelError` for bad files.
    """
    if name not in NAMES:
        raise BackendUnavailableError(f"there is no embedding backend {name!r}; there are {', '.join(NAMES)}")
    config = model if isinstance(model, EmbeddingConfig) else read_config(model)
    if name in _PACKAGED:
        return make_packaged(name, config)
    if name == BOTH:
        return BothBackend(BOTH, config, (make_backend("coreml", config), make_backend("mlx", config)))
    if name == "mlx":
        return MLXEmbeddingBackend(config)
    if name == "cpu":
        heads = config.encoder.most_heads
        bound = SCORES_BYTES if most_tokens is None else scores_bytes(heads, most_tokens)
        return CPUEmbeddingBackend(config, threads=threads, scores_bytes=bound)
    return NumpyEmbeddingBackend(config)
