"""Files that are documents each: text as it stands, and what text there is in Markdown, HTML and PDF."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ...contract import MAX_TEXT_BYTES
from ...documents import Document, FailedDocument
from ...errors import InvalidRequestError, MissingExtraError
from ..formats.lines import text_of
from .extractor import ExtractionError, Extractor, is_installed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ...documents import Read
    from .extractor import Markup

WholeKind = Literal["document", "markdown", "html", "pdf"]
ENDINGS: dict[str, WholeKind] = {
    **dict.fromkeys((".txt", ".text", ".rst", ".adoc", ".org", ".tex"), "document"),
    **dict.fromkeys((".md", ".markdown"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
}
"""Which files of a folder are documents."""


@dataclass(frozen=True, slots=True)
class WholeFiles:
    """`pages`: each page of a PDF is a document, but those without text. `plain_markdown`: Markdown is read as what it
    shows, and not as it is written."""

    encoding: str | None = None
    pages: bool = False
    plain_markdown: bool = False
    extractor: Extractor = field(default_factory=Extractor)

    def markup(self, path: Path) -> Markup | None:
        """What has to be taken out of the file to have its text; None where it is text as it stands."""
        kind = ENDINGS[path.suffix.lower()]
        if kind == "document" or (kind == "markdown" and not self.plain_markdown):
            return None
        return kind

    def reads(self, path: Path) -> bool:
        """Whether what this kind of file takes is installed."""
        return (markup := self.markup(path)) is None or is_installed(markup)

    def require(self, path: Path) -> None:
        """Raises `MissingExtraError` where it is not."""
        if not self.reads(path):
            raise MissingExtraError(f"Reading {path.suffix.lower()}", "documents")

    def documents(self, path: Path, name: str, row: int | None, file: str | None) -> Iterator[Read]:
        """The document in this row or, with `pages`, one for each page, from this row on."""
        try:
            if not path.is_file():
                raise ValueError("this is no regular file")
            markup = self.markup(path)
            if markup is None:
                yield Document(name, self._as_it_stands(path, name), row, file)
            elif markup == "pdf" and self.pages:
                yield from self._pages(path, name, row or 1, file)
            else:
                yield Document(name, self._whole(path, markup), row, file)
        except OSError as error:
            yield FailedDocument(name, f"the file cannot be read: {error.strerror}", row, file, retryable=True)
        except (ValueError, InvalidRequestError) as error:
            yield FailedDocument(name, str(error), row, file)
        except ExtractionError as error:
            yield FailedDocument(name, str(error), row, file, error.retryable)

    def _as_it_stands(self, path: Path, name: str) -> str:
        if path.stat().st_size > MAX_TEXT_BYTES * 4:
            raise ValueError(f"the file is longer than {MAX_TEXT_BYTES:,} bytes")
        with path.open("rb") as opened:
            return text_of(opened, name, self.encoding)

    def _whole(self, path: Path, markup: Markup) -> str:
        texts: list[str] = []
        length = 0
        for text in self.extractor.texts(path, markup, self.encoding):
            texts.append(text)
            length += len(text.encode(errors="replace"))
            if length > MAX_TEXT_BYTES:
                raise ValueError(f"its text is longer than {MAX_TEXT_BYTES:,} bytes")
        if not any(map(str.strip, texts)):
            raise ValueError(_NO_TEXT[markup])
        return "\n\n".join(texts)

    def _pages(self, path: Path, name: str, row: int, file: str | None) -> Iterator[Read]:
        made = number = 0
        try:
            for number, text in enumerate(self.extractor.texts(path, "pdf", self.encoding), 1):
                if text.strip():
                    yield Document(f"{name}#page={number}", text, row + made, file)
                    made += 1
            if not made:
                raise ValueError(_NO_TEXT["pdf"])
        except ExtractionError as error:
            reason = f"{error}; nothing from page {number + 1} on was read"
            yield FailedDocument(name, reason, row + made, file, error.retryable)


_NO_TEXT = {
    **dict.fromkeys(("html", "markdown"), "there is no text in it"),
    "pdf": "there is no text in it: pictures of text are not read",
}
