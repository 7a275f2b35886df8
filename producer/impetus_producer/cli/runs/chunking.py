"""What `--chunk` does to a run: each text in chunks, and a row or a part of a vector for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...bulk.pooling import mean_pooled
from ...documents import ChunkedDocument, FailedDocument
from ...reading import chunks
from .bulk import Steps

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Iterator

    from ...bulk.late import EmbeddedChunks
    from ...bulk.works import EmbeddedDocument, EmbeddingWork
    from ...documents import Read
    from ..settings.server import Session
    from .bulk import Prepare


def chunking_steps(
    work: EmbeddingWork, tokens: int, overlap: int, tokenizer: str | None, *, before: Prepare, pooled: bool
) -> Steps[EmbeddedDocument]:
    """`tokenizer`: the name of a model, None for the one that is served. `before`: what is done to documents first."""

    def prepared(documents: Iterable[Read], session: Session) -> Iterable[Read]:
        return chunks.chunked(before(documents, session), _chunker(work, tokens, overlap, tokenizer, session))

    if pooled:
        return Steps(prepared, mean_pooled)
    return Steps(prepared, _told, chunks.is_first)


def late_steps(
    work: EmbeddingWork, tokens: int, overlap: int, tokenizer: str | None, *, before: Prepare
) -> Steps[EmbeddedChunks]:
    """The same for documents that the model reads as a whole."""

    def prepared(documents: Iterable[Read], session: Session) -> Iterable[Read]:
        return chunks.marked(before(documents, session), _chunker(work, tokens, overlap, tokenizer, session))

    return Steps(prepared, _apart, chunks.is_first)


def _chunker(work: EmbeddingWork, tokens: int, overlap: int, tokenizer: str | None, session: Session) -> chunks.Chunker:
    name = tokenizer or work.model or work.served(session.producer.servers[0], session.check).model
    return chunks.Chunker(chunks.open_tokenizer(name), tokens, overlap)


def _told(outcomes: Iterator[Any], read: deque[Read]) -> Iterator[tuple[Any, Read]]:
    for outcome in outcomes:
        chunk = read.popleft()
        yield chunks.told(outcome, chunk), chunk


def _apart(outcomes: Iterator[Any], read: deque[Read]) -> Iterator[tuple[Any, Read]]:
    """A row for each chunk, or one for a document that failed."""
    for outcome in outcomes:
        document = read.popleft()
        if not isinstance(document, ChunkedDocument):
            yield outcome, document
        elif isinstance(outcome, FailedDocument):
            yield outcome, chunks.with_place(document, 0, 0, len(document.text))
        else:
            for number, (each, span) in enumerate(zip(outcome.apart(), document.chunks, strict=True)):
                yield each, chunks.with_place(document, number, *span)
