"""Files to read, and what they are read as."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from impetus_producer.documents import Document
from impetus_producer.reading.source import ReadingOptions, open_source
from tests.paths import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_producer.documents import Read

CASES = DATA / "bulk"


def read(name: Path | str, stdin: bytes = b"", **options: Any) -> list[Read]:
    return list(open_source(str(name), ReadingOptions(**options), stdin=io.BytesIO(stdin)))


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def told(documents: list[Read]) -> list[tuple[Any, str]]:
    """Each one's id with its text, or with the reason why it has none."""
    return [
        (document.id, document.text if isinstance(document, Document) else document.reason) for document in documents
    ]
