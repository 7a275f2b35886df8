"""How inputs are read, and which of these options means anything to which kind of input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import InvalidRequestError
from .bytes.encodings import check_encoding
from .extracting.whole_files import WholeFiles, WholeKind
from .fields import Fields

InputFormat = Literal["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"]
Kind: TypeAlias = "InputFormat | WholeKind | Literal['folder', 'query']"
FORMATS: dict[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "txt",
    ".text": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_IN_TEXT = ("jsonl", "json", "csv", "tsv")
_HAVE_FIELDS = (*_IN_TEXT, "parquet", "arrow", "query")


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How inputs are read. What is None goes by each input; an option that none of them heeds is refused."""

    input_format: InputFormat | None = None
    id_field: str | None = None
    text_field: str | None = None
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str | None = None
    follow_links: bool = False
    pages: bool = False
    plain_markdown: bool = False
    sql: tuple[str, str] | None = None
    """A database's URL, and what it is asked."""

    @property
    def whole_files(self) -> WholeFiles:
        return WholeFiles(self.encoding, self.pages, self.plain_markdown)

    def fields(self, file: str | None) -> Fields:
        return Fields(self.id_field or "id", self.text_field or "text", self.id_field is not None, self.columns, file)

    def without_effect(self, kinds: set[Kind]) -> str | None:
        """The first option that means nothing to any of these inputs."""
        for name, value, heeded_by in (
            ("--id-field", self.id_field, _HAVE_FIELDS),
            ("--text-field", self.text_field, _HAVE_FIELDS),
            ("--column", self.columns, _HAVE_FIELDS),
            ("--delimiter", self.delimiter, ("csv", "tsv")),
            ("--encoding", self.encoding, (*_IN_TEXT, "txt", "document", "markdown", "html", "folder")),
            ("--follow-links", self.follow_links, ("folder",)),
            ("--pages", self.pages, ("pdf", "folder")),
            ("--plain-markdown", self.plain_markdown, ("markdown", "folder")),
            ("--input-format", self.input_format, (*_IN_TEXT, "parquet", "arrow", "txt")),
        ):
            if value and not kinds & set(heeded_by):
                return name
        return None


def check(options: ReadingOptions) -> None:
    if options.encoding is not None:
        check_encoding(options.encoding)
    delimiter = options.delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n '):
        raise InvalidRequestError(f"--delimiter must be one character, such as ';' or '\\t', not {delimiter!r}")
    for name in options.columns:
        if options.columns.count(name) > 1:
            raise InvalidRequestError(f"--column {name} is given twice: once is enough")
