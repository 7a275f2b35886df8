"""What a device for embeddings is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from impetus_backends.protocol import Spans, SparseVector


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
