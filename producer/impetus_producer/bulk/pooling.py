"""One vector for each document out of those of its chunks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..documents import FailedDocument
from ..reading.chunks import COLUMNS, is_first
from .works import EmbeddedDocument

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Iterator

    from ..documents import Read
    from .works import Embedded


def mean_pooled(outcomes: Iterable[Embedded], read: deque[Read]) -> Iterator[tuple[Embedded, Read]]:
    """The mean of the vectors of a document's chunks, of length 1, and the document; or why one of its chunks failed.

    `read`: what the outcomes are of, which is taken away as they come.
    """
    chunks: list[Embedded] = []
    whole: Read | None = None
    for outcome in outcomes:
        chunk = read.popleft()
        if whole is not None and is_first(chunk):
            yield _pooled(chunks), whole
            chunks = []
        if not chunks:
            whole = _whole(chunk)
        chunks.append(outcome)
    if whole is not None:
        yield _pooled(chunks), whole


def _whole(chunk: Read) -> Read:
    return chunk if isinstance(chunk, FailedDocument) else replace(chunk, columns=chunk.columns[: -len(COLUMNS)])


def _pooled(chunks: list[Embedded]) -> Embedded:
    vectors: list[Any] = []
    for chunk in chunks:
        if isinstance(chunk, FailedDocument):
            return chunk
        vectors.append(chunk.vector)
    first = chunks[0]
    assert isinstance(first, EmbeddedDocument)
    return first if len(vectors) == 1 else replace(first, vector=_mean(vectors))


def _mean(vectors: list[Any]) -> Any:
    try:
        import numpy as np
    except ImportError:
        sums = [sum(column) for column in zip(*vectors, strict=True)]
        length = math.hypot(*sums)
        return [number / length if length else 0.0 for number in sums]
    total = np.sum(vectors, axis=0, dtype=np.float64)
    length = float(np.linalg.norm(total))
    return (total / length if length else total).astype(np.float32)
