"""Opens what is to be read: files, patterns of files, folders, standard input. What cannot be read is told at once.

Knows endings and options. The formats themselves are in the modules beside this one.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from ..errors import InvalidRequestError
from .bytes.encodings import check_encoding
from .bytes.packing import PACKINGS
from .bytes.streams import Stream, open_stream
from .fields import Fields
from .folders import TEXT_ENDINGS, Folder, file_document, told
from .formats.csv_documents import csv_documents
from .formats.json_documents import json_documents
from .formats.lines import line_documents
from .formats.tables import TABLE_FORMATS, check_table, column_types, table_documents
from .guesses import guess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..documents import Read

InputFormat = Literal["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"]
_Kind = Literal["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "document", "folder"]
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
_STANDARD_INPUT = "standard input"
_CHUNK_BYTES = 1 << 20
_HAVE_FIELDS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")


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

    def fields(self, file: str | None) -> Fields:
        return Fields(self.id_field or "id", self.text_field or "text", self.id_field is not None, self.columns, file)

    def without_effect(self, kinds: set[_Kind]) -> str | None:
        """The first option that means nothing to any of these inputs."""
        for name, value, heeded_by in (
            ("--id-field", self.id_field, _HAVE_FIELDS),
            ("--text-field", self.text_field, _HAVE_FIELDS),
            ("--column", self.columns, _HAVE_FIELDS),
            ("--delimiter", self.delimiter, ("csv", "tsv")),
            ("--encoding", self.encoding, ("jsonl", "json", "csv", "tsv", "txt", "document", "folder")),
            ("--follow-links", self.follow_links, ("folder",)),
            ("--input-format", self.input_format, (*_HAVE_FIELDS, "txt")),
        ):
            if value and not kinds & set(heeded_by):
                return name
        return None


@dataclass(frozen=True, slots=True)
class _Part:
    """One input. `count` says about how many documents it has, from a quick look."""

    kind: _Kind
    read: Callable[[], Iterator[Read]]
    count: Callable[[], int | None] = lambda: None
    rereadable: bool = True
    types: Callable[[], dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Documents in their order. Iterating reads them as they are needed, so a file may be larger than memory."""

    name: str
    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    """What whoever asked should be told before: how it was guessed to read something."""
    _parts: tuple[_Part, ...]
    _left_out: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Read]:
        self._left_out.clear()
        for part in self._parts:
            yield from part.read()

    @property
    def has_several_files(self) -> bool:
        return len(self._parts) > 1

    @property
    def rereadable(self) -> bool:
        return all(part.rereadable for part in self._parts)

    def count(self) -> int | None:
        """About how many documents there are, from a quick look; None where only reading them would tell."""
        counts = [part.count() for part in self._parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def column_types(self) -> dict[str, Any]:
        """The Arrow types of the columns that are read along, where every input has the same."""
        if not all(part.types for part in self._parts):
            return {}
        types = [part.types() for part in self._parts if part.types]
        return {name: kind for name, kind in types[0].items() if all(other.get(name) == kind for other in types)}

    def left_out(self) -> str | None:
        """What of the folders read so far was no document."""
        return f"Left out of the folders: {told(self._left_out)}." if self._left_out else None


def open_source(
    names: str | Sequence[str], options: ReadingOptions | None = None, *, stdin: BinaryIO | None = None
) -> Source:
    """The documents in the files, folders and patterns `names`, in their order; `-` is standard input.

    The format is the one given, else goes by the file's ending, before `.gz` or `.zst`; where there is none (standard
    input, a pipe) it is guessed from the first lines and said in `notes`.

    Ids are `id_field` of a record, by default `id`: strings, or whole numbers where the format has them. Where that
    default is absent or empty a document has no id, and its row tells it; where a field was asked for by name its
    absence fails the document. Where no document can have one (lines of text, a CSV file without that column) and
    there is one input only, the id is the line's number. Of a folder it is the path within.

    Raises `InvalidRequestError` for what makes an input unreadable as a whole, and for options without an effect.
    """
    options = options or ReadingOptions()
    _check(options)
    paths = [path for name in ([names] if isinstance(names, str) else names) for path in _expanded(name)]
    if not paths:
        raise InvalidRequestError("there is nothing to read: name a file, a folder, or - for standard input")
    if paths.count("-") > 1:
        raise InvalidRequestError("standard input can be read only once: name - once")
    left_out: Counter[str] = Counter()
    notes: list[str] = []
    parts = []
    for path in paths:
        fields = options.fields(path if len(paths) > 1 else None)
        if path == "-":
            parts.append(
                _piped(stdin if stdin is not None else sys.stdin.buffer, _STANDARD_INPUT, options, fields, notes)
            )
        else:
            parts.append(_open(Path(path), options, fields, left_out, notes))
    if ignored := options.without_effect({part.kind for part in parts}):
        kinds = ", ".join(sorted({_TOLD.get(part.kind) or str(part.kind) for part in parts}))
        raise InvalidRequestError(f"{ignored} has no effect on this input, which is {kinds}: leave it out")
    name = paths[0] if len(paths) == 1 else f"{len(paths):,} inputs"
    files = tuple(Path(path) for path in paths if path != "-")
    return Source(_STANDARD_INPUT if name == "-" else name, files, tuple(notes), tuple(parts), left_out)


_TOLD: dict[_Kind, str] = {
    "txt": "plain lines",
    "document": "one document a file",
    "folder": "a folder",
    "json": "JSON",
}


def _check(options: ReadingOptions) -> None:
    if options.encoding is not None:
        check_encoding(options.encoding)
    delimiter = options.delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n '):
        raise InvalidRequestError(f"--delimiter must be one character, such as ';' or '\\t', not {delimiter!r}")
    for name in options.columns:
        if options.columns.count(name) > 1:
            raise InvalidRequestError(f"--column {name} is given twice: once is enough")


def _expanded(name: str) -> list[str]:
    """What a pattern matches, in order of name. A file that is there is no pattern, whatever its name."""
    if name == "-" or os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise InvalidRequestError(f"no file matches the pattern {name!r}")
    return found


def _open(path: Path, options: ReadingOptions, fields: Fields, left_out: Counter[str], notes: list[str]) -> _Part:
    name = str(path)
    try:
        if path.is_dir():
            folder = Folder(path, left_out, options.encoding, options.follow_links, fields.file)
            folder.check()
            return _Part("folder", folder.documents, folder.count)
        if not path.exists():
            path.stat()
        if not path.is_file():
            # A pipe can be opened only once.
            return _piped(path.open("rb"), name, options, fields, notes, owned=True)
        kind = _kind_of(path, options)
        if kind == "document":
            path.open("rb").close()
            return _Part(
                kind, lambda: iter([file_document(path, name, None, fields.file, options.encoding)]), lambda: 1
            )
        if kind in TABLE_FORMATS:
            rows = check_table(path, kind, fields)
            return _Part(
                kind,
                lambda: table_documents(path, kind, fields),
                lambda: rows,
                types=lambda: column_types(path, kind, options.columns),
            )
        with open_stream(path, options.encoding) as stream:
            _documents(kind, stream, options, fields)
            countable = stream.encoding.newline == b"\n" and path.suffix.lower() not in PACKINGS
    except OSError as error:
        if error.errno is None:
            raise InvalidRequestError(f"{name!r} cannot be read: {error}") from None
        raise InvalidRequestError(f"{name!r} cannot be read: {os.strerror(error.errno)}") from None

    def read() -> Iterator[Read]:
        try:
            with open_stream(path, options.encoding) as stream:
                yield from _documents(kind, stream, options, fields)
        except (FileNotFoundError, PermissionError) as error:
            yield fields.failed(f"{name!r} is gone since it was looked at: {error.strerror}", 1, retryable=True)

    return _Part(kind, read, lambda: _count_records(path, kind) if countable else None)


def _kind_of(path: Path, options: ReadingOptions) -> _Kind:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = bool(suffixes) and suffixes[-1] in PACKINGS
    ending = (suffixes[:-1] if packed else suffixes)[-1:]
    kind: _Kind | None = options.input_format or (FORMATS.get(ending[0]) if ending else None)
    if kind is None and ending and ending[0] in TEXT_ENDINGS and not packed:
        return "document"
    if kind is None:
        raise InvalidRequestError(
            f"what {str(path)!r} holds cannot be told from its ending: name it {', '.join(FORMATS)}, give a folder of "
            "text files, or state --input-format"
        )
    if packed and kind in TABLE_FORMATS:
        raise InvalidRequestError(f"{str(path)!r} must be unpacked first: a .{kind} file is read in no certain order")
    return kind


def _piped(
    file: BinaryIO, name: str, options: ReadingOptions, fields: Fields, notes: list[str], owned: bool = False
) -> _Part:
    """Bytes that come once. Waits for the first lines. `owned`: to be closed when they are read."""
    if options.input_format in TABLE_FORMATS:
        raise InvalidRequestError(f"a .{options.input_format} is not read from a pipe: give the file")
    stream = Stream(file, name, options.encoding)
    suffix = Path(name).suffix.lower()
    kind: _Kind | None = options.input_format or (None if name == _STANDARD_INPUT else FORMATS.get(suffix))
    if kind is None:
        guessed = guess(stream, fields)
        kind = guessed.kind
        notes.append(guessed.sentence)
    documents = _documents(kind, stream, options, fields)

    def read() -> Iterator[Read]:
        yield from documents
        if owned:
            file.close()

    return _Part(kind, read, rereadable=False)


def _documents(kind: _Kind, stream: Stream, options: ReadingOptions, fields: Fields) -> Iterator[Read]:
    if kind in ("csv", "tsv"):
        return csv_documents(stream, fields, options.delimiter or ("," if kind == "csv" else "\t"))
    return (json_documents if kind in ("json", "jsonl") else line_documents)(stream, fields)


def _count_records(path: Path, kind: _Kind) -> int | None:
    with suppress(OSError), path.open("rb") as file:
        if kind == "json":
            return None
        if kind not in ("csv", "tsv"):
            return _count_lines(file)
        # A record goes on to the next line while a quote is open.
        quotes = records = 0
        for line in file:
            quotes += line.count(b'"')
            records += quotes % 2 == 0
        return max(0, records - 1)
    return None


def _count_lines(file: BinaryIO) -> int:
    count, last = 0, b"\n"
    while chunk := file.read(_CHUNK_BYTES):
        count += chunk.count(b"\n")
        last = chunk[-1:]
    return count + (last != b"\n")
