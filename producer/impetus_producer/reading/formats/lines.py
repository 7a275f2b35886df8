"""One document a line, and one document a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from ...contract import MAX_TEXT_BYTES
from ...documents import Document
from ..bytes.encodings import encoding_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...documents import Read
    from ..bytes.streams import Stream
    from ..fields import Fields


def line_documents(stream: Stream, fields: Fields) -> Iterator[Read]:
    """An empty line is an empty document."""
    numbered = fields.of_nameless().numbered
    for line in stream.lines():
        document_id = str(line.number) if numbered else None
        if line.problem is not None:
            yield fields.failed(line.problem, line.number, document_id, retryable=line.retryable)
        else:
            yield Document(document_id, line.content, line.number, fields.file)


def text_of(file: BinaryIO, name: str, encoding: str | None) -> str:
    """All of a file. Raises `ValueError` with the reason where that is no text or too much."""
    data = file.read(MAX_TEXT_BYTES * 4 + 4)
    used = encoding_of(data, encoding, name)
    text = used.decoded(data[used.mark_bytes :])
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise ValueError(f"the file is longer than {MAX_TEXT_BYTES:,} bytes")
    return text
