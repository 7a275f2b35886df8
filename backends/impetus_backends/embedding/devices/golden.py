"""The golden check: a device serves only after it agrees with the reference, alone and in a mixed padded batch.

Silent wrongness is the commonest fault of embedding servers: wrong pooling, a mask ignored, a batch collapsed to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.devices.reference import NumpyEmbeddingBackend
from impetus_backends.embedding.texts.pairs import load_pairs
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import BackendUnavailableError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend, SparseBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.reranker import RerankerConfig
    from impetus_backends.protocol import SparseVector

GOLDEN_TEXTS = (
    "",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "Η γρήγορη αλεπού. 敏捷的棕色狐狸跳过懒狗。 الثعلب البني السريع",
    "🦊🦊 jumps over 🐶 — “quoted”, 3.14 % of it\tand\u0000 control\u200b characters",
    "def embed(texts: list[str]) -> np.ndarray: return model(tokenize(texts))",
    "A batch holds texts of many lengths, and padding must change none of them. " * 4,
    "Longer than any model reads. " * 200,
)
# What is stored smaller is held to a wider bar: its accuracy was measured when it was converted, and here a device is
# caught that computes something else.
GOLDEN_QUERY = "a lazy fox"
_LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99, "palette6": 0.95, "w8a8": 0.95}
_MOST_APART = {"fp32": 1e-3, "fp16": 0.1}
"""Of a reranker's logits, which run from about -12 to 12."""


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """How a device did. Both figures are worst cases over all texts."""

    texts: int
    least_cosine: float
    """Against the reference, alone and in the batch."""
    largest_difference: float
    """Of any element, between a text alone and the same text in the batch."""


def check(
    backend: EmbeddingBackend, config: EmbeddingConfig, folder: Path, texts: Sequence[str] = GOLDEN_TEXTS
) -> GoldenReport:
    """Compares a loaded backend with the reference; raises `BackendUnavailableError` with the figures if it is worse
    than a cosine of 0.9999 (fp32), 0.999 (fp16) or less (weights stored smaller), or returns anything but finite
    vectors of the right shape and norm.
    """
    rows = [text.ids for text in TextEncoder.load(folder).encode(texts)]
    reference = NumpyEmbeddingBackend(config)
    reference.load()
    expected = np.concatenate([reference.embed([row]) for row in rows])
    if np.isfinite(expected).all() and not np.ptp(expected, axis=0).any():
        raise ModelError(f"the weights in {config.transformer} make the same vector of every text")
    alone = np.concatenate([_embed(backend, config, [row]) for row in rows])
    together = _embed(backend, config, rows)
    off = max(_lengths_apart(expected, made) for made in (alone, together))
    if config.normalised and off > 1e-3:
        raise _returned(backend, f"vectors whose length is off by {off:.4f}")
    cosines = np.concatenate([_cosines(expected, alone), _cosines(expected, together)])
    report = GoldenReport(len(rows), float(cosines.min()), float(np.abs(alone - together).max()))
    least = _LEAST_COSINE[backend.precision]
    if report.least_cosine < least:
        worst = int(cosines.argmin())
        where = "in a batch" if worst >= len(rows) else "alone"
        raise BackendUnavailableError(
            f"{backend.name} on {backend.device} disagrees with the reference: cosine {report.least_cosine:.6f} for "
            f"golden text {worst % len(rows)} {where}, and {least} is needed at {backend.precision}"
        )
    return report


def check_scores(backend: EmbeddingBackend, config: RerankerConfig, folder: Path) -> float:
    """`check` for a reranker: how far its logits are from the reference's at most, alone and in a batch."""
    rows = [text.ids for text in load_pairs(folder).encode(GOLDEN_QUERY, GOLDEN_TEXTS)]
    reference = NumpyEmbeddingBackend(config)
    reference.load()
    expected, alone = (np.concatenate([_embed(each, config, [row]) for row in rows]) for each in (reference, backend))
    together = _embed(backend, config, rows)
    wanted = _logits(config, expected)
    apart = max(float(np.abs(_logits(config, scores) - wanted).max()) for scores in (alone, together))
    most = _MOST_APART[backend.precision]
    if apart > most:
        raise BackendUnavailableError(
            f"{backend.name} on {backend.device} disagrees with the reference: logits differ by {apart:.4f}, "
            f"and {most} is the most at {backend.precision}"
        )
    return apart


def check_sparse(backend: SparseBackend, config: EmbeddingConfig, folder: Path) -> float:
    """`check` for a model with a sparse head: the least cosine of its sparse vectors, alone and in a batch."""
    rows = [text.ids for text in TextEncoder.load(folder).encode(GOLDEN_TEXTS)]
    reference = NumpyEmbeddingBackend(config)
    reference.load()
    expected, alone = (_spread(config, [each.weigh([row])[0] for row in rows]) for each in (reference, backend))
    if not expected.any():
        raise ModelError(f"the weights in {config.transformer} make the same sparse vector of every text")
    least = _LEAST_COSINE[backend.precision]
    found = min(float(_cosines(expected, made).min()) for made in (alone, _spread(config, backend.weigh(rows))))
    if not found >= least:
        raise BackendUnavailableError(
            f"{backend.name} on {backend.device} disagrees with the reference: cosine {found:.6f} of sparse vectors, "
            f"and {least} is needed at {backend.precision}"
        )
    return found


def _spread(config: EmbeddingConfig, vectors: Sequence[SparseVector]) -> np.ndarray:
    """With a number for every token of the vocabulary."""
    spread = np.zeros((len(vectors), config.encoder.vocab_size), dtype=np.float32)
    for row, vector in zip(spread, vectors, strict=True):
        row[vector.indices] = vector.values
    return spread


def _logits(config: RerankerConfig, scores: np.ndarray) -> np.ndarray:
    """Scores near 0 hide what led to them; of those next to 1 float32 has forgotten it."""
    if config.scores != "sigmoid":
        return scores
    inside = np.clip(scores.astype(np.float64), 1e-9, 0.999)
    return np.log(inside / (1 - inside))


def _embed(backend: EmbeddingBackend, config: EmbeddingConfig, rows: Sequence[np.ndarray]) -> np.ndarray:
    vectors = backend.embed(rows)
    fault = None
    if vectors.shape != (len(rows), config.dimensions):
        fault = f"shape {vectors.shape} for {len(rows)} texts of {config.dimensions} dimensions"
    elif not np.isfinite(vectors).all():
        fault = "vectors that are not finite"
    if fault:
        raise _returned(backend, fault)
    return vectors


def _returned(backend: EmbeddingBackend, fault: str) -> BackendUnavailableError:
    return BackendUnavailableError(f"{backend.name} on {backend.device} returned {fault} in its golden check")


def _lengths_apart(a: np.ndarray, b: np.ndarray) -> float:
    """At most. Not all are 1 where vectors are scaled to it: of nothing, or by a ReLU, there are vectors of zeros."""
    return float(np.abs(np.linalg.norm(a, axis=1) - np.linalg.norm(b, axis=1)).max())


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: np.ndarray = (a * b).sum(axis=1) / np.maximum(lengths, np.float32(1e-12))
    # A last layer of ReLU makes vectors of zeros, and two of those are the same.
    return np.where(~a.any(axis=1) & ~b.any(axis=1), 1, cosines)
