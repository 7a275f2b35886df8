"""What `--chunk` does to a run: each text in chunks, and a row or a part of a vector for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...bulk.pooling import mean_pooled
from ...reading import chunks
from .bulk import Steps

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Iterator

    from ...bulk.works import EmbeddedDocument, EmbeddingWork
    from ...documents import Read
    from ..settings.server import Session
    from .bulk import Prepare


def chunking_steps(
    work: EmbeddingWork, tokens: int, overlap: int, tokenizer: str | None, *, before: Prepare, pooled: bool
) -> Steps[EmbeddedDocument]:
    """`tokenizer`: the name of a model, None for the one that is served. `before`: what is done to documents first."""

    def prepared(documents: Iterable[Read], session: Session[Any]) -> Iterable[Read]:
        name = tokenizer or work.model or work.served(session.producer, session.check).model
        return chunks.chunked(before(documents, session), chunks.Chunker(chunks.open_tokenizer(name), tokens, overlap))

    if pooled:
        return Steps(prepared, mean_pooled)
    return Steps(prepared, _told, chunks.is_first)


def _told(outcomes: Iterator[Any], read: deque[Read]) -> Iterator[tuple[Any, Read]]:
    for outcome in outcomes:
        chunk = read.popleft()
        yield chunks.told(outcome, chunk), chunk
