"""Sparse vectors of what a device makes with a model's sparse head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.encoder import PROMPT
from impetus_backends.embedding.folder.sparse import Lexical
from impetus_backends.protocol import SparseVector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.folder.config import EmbeddingConfig


def vectors(config: EmbeddingConfig, rows: Sequence[np.ndarray], made: np.ndarray) -> list[SparseVector]:
    """Those of token rows, in order. `made`: by `encoder.weigh`, of these rows one below the other; more are left out.

    Weights that are not finite stay, for whoever checks them.
    """
    flat = np.asarray(made, dtype=np.float32).reshape(len(made), -1)
    head = config.sparse
    if isinstance(head, Lexical):
        return [_of_tokens(head, row & (PROMPT - 1), weights) for row, weights in zip(rows, flat, strict=False)]
    most = None if head is None else head.most
    return [_of_vocabulary(weights, most) for _, weights in zip(rows, flat, strict=False)]


def _of_vocabulary(weights: np.ndarray, most: int | None) -> SparseVector:
    indices = np.flatnonzero(weights)
    if most is not None and len(indices) > most:
        indices = np.sort(indices[np.argsort(-weights[indices], kind="stable")[:most]])
    return SparseVector(indices.astype(np.int32), weights[indices])


def _of_tokens(head: Lexical, row: np.ndarray, weights: np.ndarray) -> SparseVector:
    """As FlagEmbedding: of a token that comes several times the largest weight counts."""
    tokens, places = np.unique(row, return_inverse=True)
    largest = np.zeros(len(tokens), dtype=np.float32)
    np.maximum.at(largest, places, weights[: len(row)])
    wanted = (largest != 0) & ~np.isin(tokens, head.unweighed)
    return SparseVector(tokens[wanted].astype(np.int32), largest[wanted])
