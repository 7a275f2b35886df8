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
from impetus_backends.embedding.devices.backend import ChunkBackend, SparseBackend
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend
from impetus_backends.embedding.encoder import refuses_chunks
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.reranker import RerankerConfig
from impetus_backends.embedding.folder.sparse import Splade
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.embedding.texts.prompts import missing_prompts
from impetus_backends.errors import BackendError, RequestError
from impetus_backends.machine.energy import Reading
from impetus_backends.protocol import Embedded, EmbeddingWork, EngineInfo, Event, Rejected, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.machine.energy import Meter
    from impetus_backends.models import ModelFiles
    from impetus_backends.protocol import Spans, SparseVector

_NO_CHUNKS = "the backend {} makes one vector of a row; cpu, mlx and numpy make one of each chunk"
_NONE = np.empty((0, 0), dtype=np.float32)
_MOST_LOGITS = 2**26
"""Of a batch of a SPLADE model: 256 MB in float32."""


class EmbeddingEngine:
    """A loaded backend behind `protocol.Engine`. Urgent work first, otherwise in the order of admission."""

    def __init__(
        self,
        backend: EmbeddingBackend,
        info: EngineInfo,
        clock: Callable[[], float] = time.perf_counter,
        meter: Meter | None = None,
    ) -> None:
        self._backend: EmbeddingBackend | None = backend
        self._info = info
        self._clock = clock
        self._reading = Reading(meter)
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
        if isinstance(self._backend, PackagedEmbeddingBackend):
            self._backend.close()
        self._backend = None

    def _run(self, work: EmbeddingWork) -> Embedded | Rejected:
        if self._backend is None:
            return Rejected(work.id, "the engine is closed", permanent=False)
        if work.output not in self._info.outputs:
            said = self._info.no_sparse if work.output == "sparse" else "makes sparse embeddings alone"
            return Rejected(work.id, f"{self._info.model} {said}")
        used_j, started = self._reading.joules(), self._clock()
        try:
            vectors, sparse = self._made(self._backend, work)
        except RequestError as error:
            return Rejected(work.id, str(error))
        except Exception as error:  # noqa: BLE001 - whatever a device raises must not end the engine
            return Rejected(work.id, f"{self._info.backend}: {type(error).__name__}: {error}", permanent=False)
        took_s, now_j = self._clock() - started, self._reading.joules()
        energy_j = None if used_j is None or now_j is None else now_j - used_j
        return Embedded(work.id, vectors, took_s, sparse=sparse, energy_j=energy_j)

    def _made(self, backend: EmbeddingBackend, work: EmbeddingWork) -> tuple[np.ndarray, Sequence[SparseVector]]:
        if work.output == "sparse" and isinstance(backend, SparseBackend):
            sparse = backend.weigh(work.rows)
            if len(sparse) != len(work.rows):
                raise BackendError(f"{len(work.rows)} texts came back as {len(sparse)} sparse vectors")
            self._verify_finite(vector.values for vector in sparse)
            return _NONE, sparse
        if work.chunks is not None:
            return self._of_chunks(backend, work.rows, work.chunks), ()
        vectors = backend.embed(work.rows)
        self._verify(vectors, len(work.rows))
        return vectors, ()

    def _of_chunks(self, backend: EmbeddingBackend, rows: Sequence[np.ndarray], chunks: Sequence[Spans]) -> np.ndarray:
        if self._info.refuses_chunks is not None or not isinstance(backend, ChunkBackend):
            raise RequestError(f"{self._info.model} makes no vectors of chunks: {self._info.refuses_chunks}")
        vectors = backend.embed_chunks(rows, chunks)
        self._verify(vectors, sum(len(spans) or 1 for spans in chunks))
        return vectors

    def _verify(self, vectors: np.ndarray, count: int) -> None:
        if vectors.shape != (count, self._info.dimensions):
            raise BackendError(
                f"{count} texts came back as {vectors.shape}, not ({count}, {self._info.dimensions}); "
                "does the backend drop or merge rows of a batch?"
            )
        if not np.isfinite(vectors).all():
            self._verify_finite(vectors)

    def _verify_finite(self, rows: Iterable[np.ndarray]) -> None:
        bad = [index for index, row in enumerate(rows) if not np.isfinite(row).all()]
        if bad:
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
    if isinstance(config, RerankerConfig):
        notes.append(config.note)
    else:
        notes.append(missing_prompts(files.aliases, (prompt for _, prompt in config.text.prompts)))
    outputs, no_sparse = config.outputs, config.no_sparse
    if "sparse" in outputs and not isinstance(backend, SparseBackend):
        outputs, no_sparse = (
            ("dense",),
            f"makes no sparse embeddings on {backend.name}, whose packages end in pooled vectors; mlx and cpu do",
        )
    if check:
        passed = _golden(backend, config, files, outputs)
        reasons = (*reasons, f"{backend.name}: golden check passed, {passed}")
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
        outputs=outputs,
        no_sparse=no_sparse,
        max_tokens=config.text.max_tokens,
        batch_tokens=_batch_tokens(backend, config),
        packs=getattr(backend, "packs", False),
        note="; ".join(note for note in notes if note) or None,
        reasons=reasons,
        refuses_chunks=refuses_chunks(config) if isinstance(backend, ChunkBackend) else _NO_CHUNKS.format(backend.name),
    )
    return EmbeddingEngine(backend, info)


def _golden(backend: EmbeddingBackend, config: EmbeddingConfig, files: ModelFiles, outputs: tuple[str, ...]) -> str:
    """Holds a backend to its golden check in all that it makes; says how near it is."""
    if isinstance(config, RerankerConfig):
        return f"logits {golden.check_scores(backend, config, files.folder):.1e} apart at most"
    found = []
    if "dense" in outputs:
        found.append(f"least cosine {golden.check(backend, config, files.folder).least_cosine:.7f}")
    if "sparse" in outputs and isinstance(backend, SparseBackend):
        found.append(f"least cosine of sparse vectors {golden.check_sparse(backend, config, files.folder):.7f}")
    return ", ".join(found)


def _batch_tokens(backend: EmbeddingBackend, config: EmbeddingConfig) -> int:
    """Padded tokens of a batch. Where each of them has a weight for every token of the vocabulary, memory bounds it."""
    usual = USUAL.get(backend.name, min(USUAL.values()))
    return min(usual, _MOST_LOGITS // config.encoder.vocab_size) if isinstance(config.sparse, Splade) else usual
