"""What a document is, and what became of one that could not be read.

Knows neither files nor Redis. `reading/` makes documents of files, `bulk.py` makes vectors of documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

DocumentId: TypeAlias = str | int | None
"""What the input calls a document: 0 and "0" are two ids. None where it has no name; its row tells it then."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, the id it is known by, and where it stands in the input.

    `row` is the line it begins on, the row of a table or the number of a file, from 1. `file` is None where there is
    only one input. `columns` are the further values that were asked for, in the order they were asked for.
    """

    id: DocumentId
    text: str
    row: int | None = None
    file: str | None = None
    columns: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkedDocument(Document):
    """One that is read as a whole, and of which each chunk has a vector. `chunks`: their characters, from and to."""

    chunks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class FailedDocument:
    """A document that has no vector, and why, in one sentence. `retryable`: the same run tried again may have it."""

    id: DocumentId
    reason: str
    row: int | None = None
    file: str | None = None
    retryable: bool = False


Read: TypeAlias = Document | FailedDocument
