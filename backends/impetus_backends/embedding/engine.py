"""The engine for embeddings: batches in, vectors out, one batch a step, and no batch can spoil another.

A reranker is one whose rows are of a query and a document, and whose vectors have one dimension, the score.
Knows the protocol and a backend, and nothing of queues, texts or devices.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.budget import USUAL
from impetus_backends.embedding.devices import golden
from impetus_backends.embedding.devices.backends import ChunkBackend
from impetus_backends.embedding.encoder import refuses_chunks
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.reranker import RerankerConfig
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.errors import BackendError, RequestError
from impetus_backends.protocol import Embedded, EmbeddingWork, EngineInfo, Event, Rejected, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.embedding.devices.backends import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.models import ModelFiles
    from impetus_backends.protocol import Spans

_NO_CHUNKS = "the backend {} makes one vector of a row; cpu, mlx and numpy make one of each chunk"


class EmbeddingEngine:
    """A loaded backend behind `protocol.Engine`. Urgent work first, otherwise in the order of admission."""

    def __init__(
        self, backend: EmbeddingBackend, info: EngineInfo, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._backend: EmbeddingBackend | None = backend
        self._info = info
        self._clock = clock
        self._urgent: deque[EmbeddingWork] = deque()
        self._patient: deque[EmbeddingWork] = deque()
        self._refused: list[Rejected] = []

    @property
    def info(self) -> EngineInfo:
        return self._info

    def admit(self, work: Work) -> None:
        if not isinstance(work, EmbeddingWork):
            self._refused.append(Rejected(work.id, f"{self._info.model} generates no text"))
        elif work.urgent:
            self._urgent.append(work)
        else:
            self._patient.append(work)

    def cancel(self, work_id: int) -> None:
        self._urgent = deque(work for work in self._urgent if work.id != work_id)
        self._patient = deque(work for work in self._patient if work.id != work_id)

    def pending(self) -> int:
        return len(self._urgent) + len(self._patient) + len(self._refused)

    def step(self) -> list[Event]:
        events: list[Event] = list(self._refused)
        self._refused.clear()
        queue = self._urgent or self._patient
        if queue:
            events.append(self._run(queue.popleft()))
        return events

    def resize(self, memory_bytes: int | None) -> bool:
        """As a pool of models asks it; batches are as large as the worker makes them."""
        return True

    def close(self) -> None:
        self._urgent.clear()
        self._patient.clear()
        self._refused.clear()
        self._backend = None

    def _run(self, work: EmbeddingWork) -> Embedded | Rejected:
        if self._backend is None:
            return Rejected(work.id, "the engine is closed", permanent=False)
        started = self._clock()
        try:
            if work.chunks is None:
                vectors, count = self._backend.embed(work.rows), len(work.rows)
            else:
                vectors, count = self._embed_chunks(self._backend, work.rows, work.chunks)
            self._verify(vectors, count)
        except RequestError as error:
            return Rejected(work.id, str(error))
        except Exception as error:  # noqa: BLE001 - whatever a device raises must not end the engine
            return Rejected(work.id, f"{self._info.backend}: {type(error).__name__}: {error}", permanent=False)
        return Embedded(work.id, vectors, self._clock() - started)

    def _embed_chunks(
        self, backend: EmbeddingBackend, rows: Sequence[np.ndarray], chunks: Sequence[Spans]
    ) -> tuple[np.ndarray, int]:
        """The vectors, and how many they should be."""
        if self._info.refuses_chunks is not None or not isinstance(backend, ChunkBackend):
            raise RequestError(f"{self._info.model} makes no vectors of chunks: {self._info.refuses_chunks}")
        return backend.embed_chunks(rows, chunks), sum(len(spans) or 1 for spans in chunks)

    def _verify(self, vectors: np.ndarray, count: int) -> None:
        if vectors.shape != (count, self._info.dimensions):
            raise BackendError(
                f"{count} texts came back as {vectors.shape}, not ({count}, {self._info.dimensions}); "
                "does the backend drop or merge rows of a batch?"
            )
        if not np.isfinite(vectors).all():
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
            raise BackendError(f"the vectors of rows {bad} are not finite; half precision may have overflowed")


def open_engine(
    backend: EmbeddingBackend,
    files: ModelFiles,
    config: EmbeddingConfig | None = None,
    *,
    reasons: tuple[str, ...] = (),
    check: bool = True,
) -> EmbeddingEngine:
    """Loads a backend, holds it to its golden check, and returns the engine that serves it.

    `config`: what the model's files say; none means that they are read as those of a model for embeddings.
    Raises `BackendUnavailableError` where the device cannot or may not serve, `ModelError` for bad files.
    """
    config = config or read_config(files.folder)
    backend.load()
    notes = [getattr(backend, "note", None)]  # most have nothing to add to their device's name
    if check and isinstance(config, RerankerConfig):
        apart = golden.check_scores(backend, config, files.folder)
        reasons = (*reasons, f"{backend.name}: golden check passed, logits {apart:.1e} apart at most")
    elif check:
        report = golden.check(backend, config, files.folder)
        reasons = (*reasons, f"{backend.name}: golden check passed, least cosine {report.least_cosine:.7f}")
    else:
        notes.append("not compared with the reference before serving")
    info = EngineInfo(
        kind="rerank" if isinstance(config, RerankerConfig) else "embedding",
        backend=backend.name,
        device=backend.device,
        model=files.name,
        folder=str(files.folder),
        model_aliases=files.aliases,
        fingerprint=f"{fingerprint(config)}/{backend.name}/{backend.precision}",
        precision=backend.precision,
        dimensions=config.dimensions,
        max_tokens=config.text.max_tokens,
        batch_tokens=USUAL.get(backend.name, min(USUAL.values())),
        packs=getattr(backend, "packs", False),
        note="; ".join(note for note in notes if note) or None,
        reasons=reasons,
        refuses_chunks=refuses_chunks(config) if isinstance(backend, ChunkBackend) else _NO_CHUNKS.format(backend.name),
    )
    return EmbeddingEngine(backend, info)
