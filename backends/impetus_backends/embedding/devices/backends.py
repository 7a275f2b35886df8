"""What a device for embeddings is, and the ones there are, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

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

    import numpy as np

    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.form import Form
    from impetus_backends.protocol import Spans, SparseVector

NAMES = ("coreml", "coreml-emulated", "coreai", "mlx", "cpu", "numpy")


class EmbeddingBackend(Protocol):
    """One model on one device. `device` and `precision` are final after `load`."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def load(self) -> None:
        """Makes ready; raises `BackendUnavailableError` where this machine cannot, `ModelError` for bad files."""

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Token rows as one batch to float32 (rows, dimensions); raises `RequestError` for an unreadable row."""
        ...


@runtime_checkable
class ChunkBackend(Protocol):
    """One that also makes vectors of chunks."""

    def embed_chunks(self, rows: Sequence[np.ndarray], chunks: Sequence[Spans]) -> np.ndarray:
        """As `embed`, with a vector for each chunk of a row in place of that of the whole, where it has any."""
        ...


@runtime_checkable
class SparseBackend(EmbeddingBackend, Protocol):
    """One that runs sparse heads too."""

    def weigh(self, rows: Sequence[np.ndarray]) -> list[SparseVector]:
        """Token rows as one batch to sparse vectors; raises `RequestError` for an unreadable row."""
        ...


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
    if name == "mlx":
        return MLXEmbeddingBackend(config)
    if name == "cpu":
        heads = config.encoder.most_heads
        bound = SCORES_BYTES if most_tokens is None else scores_bytes(heads, most_tokens)
        return CPUEmbeddingBackend(config, threads=threads, scores_bytes=bound)
    return NumpyEmbeddingBackend(config)
