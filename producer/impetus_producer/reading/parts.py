"""One input each: a file, a folder, a pipe, a query. What cannot be read is told when it is opened.

Knows endings and options. The formats themselves are in the modules beside this one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..errors import InvalidRequestError
from .bytes.packing import PACKINGS
from .bytes.streams import Stream, open_stream
from .extracting.whole_files import ENDINGS, WholeFiles
from .formats.csv_documents import csv_documents
from .formats.json_documents import json_documents
from .formats.lines import line_documents
from .formats.tables import TABLE_FORMATS, check_table, column_types, table_documents
from .guesses import guess
from .options import FORMATS
from .places.folders import Folder
from .places.queries import Query
from .places.remote import RemoteFile

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

    from ..documents import Read
    from .extracting.whole_files import WholeKind
    from .fields import Fields
    from .options import Kind, ReadingOptions
    from .places.remote import Readable

STANDARD_INPUT = "standard input"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One input. `count` says about how many documents it has, from a quick look."""

    kind: Kind
    read: Callable[[], Iterator[Read]]
    count: Callable[[], int | None] = lambda: None
    rereadable: bool = True
    types: Callable[[], dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens inputs by the same options. `left_out` and `notes` gather what is to be told of them."""

    options: ReadingOptions
    files: WholeFiles
    left_out: Counter[str]
    notes: list[str] = field(default_factory=list)

    def query(self, url: str, query: str, fields: Fields) -> Part:
        return Part("query", Query(url, query, fields).documents)

    def path(self, path: Readable, fields: Fields) -> Part:
        try:
            if isinstance(path, Path):
                if path.is_dir():
                    return self._folder(path, fields)
                if not path.exists():
                    path.stat()
                if not path.is_file():
                    # A pipe can be opened only once.
                    return self.pipe(path.open("rb"), str(path), fields, owned=True)
            return self._file(path, fields)
        except OSError as error:
            reason = error if error.errno is None else os.strerror(error.errno)
            raise InvalidRequestError(f"{str(path)!r} cannot be read: {reason}") from None

    def _folder(self, path: Path, fields: Fields) -> Part:
        folder = Folder(path, self.left_out, self.files, self.options.follow_links, fields.file)
        folder.check()
        return Part("folder", folder.documents, folder.count)

    def _file(self, path: Readable, fields: Fields) -> Part:
        options = self.options
        kind = _kind_of(path, options)
        if kind in ENDINGS.values():
            return self._whole_file(path, cast("WholeKind", kind), fields)
        if kind in TABLE_FORMATS:
            rows = check_table(path, kind, fields)
            return Part(
                kind,
                lambda: table_documents(path, kind, fields),
                lambda: rows,
                types=lambda: column_types(path, kind, options.columns),
            )
        with open_stream(path, options.encoding) as stream:
            _documents(kind, stream, options, fields)
            countable = stream.encoding.newline == b"\n" and path.suffix.lower() not in PACKINGS

        def read() -> Iterator[Read]:
            try:
                with open_stream(path, options.encoding) as stream:
                    yield from _documents(kind, stream, options, fields)
            except OSError as error:
                reason = f"{str(path)!r} is gone since it was looked at: {error.strerror or error}"
                yield fields.failed(reason, 1, retryable=True)

        countable = countable and isinstance(path, Path)
        return Part(kind, read, lambda: _count_records(cast("Path", path), kind) if countable else None)

    def _whole_file(self, path: Readable, kind: WholeKind, fields: Fields) -> Part:
        if isinstance(path, RemoteFile):
            raise InvalidRequestError(f"{str(path)!r} has to be on this machine: a {path.suffix} is not read by a URL")
        self.files.require(path)
        path.open("rb").close()
        in_pages = kind == "pdf" and self.files.pages
        return Part(
            kind,
            lambda: self.files.documents(path, str(path), None, fields.file),
            lambda: None if in_pages else 1,
        )

    def pipe(self, file: BinaryIO, name: str, fields: Fields, owned: bool = False) -> Part:
        """Bytes that come once. Waits for the first lines. `owned`: to be closed when they are read."""
        options = self.options
        if options.input_format in TABLE_FORMATS:
            raise InvalidRequestError(f"a .{options.input_format} is not read from a pipe: give the file")
        stream = Stream(file, name, options.encoding)
        suffix = Path(name).suffix.lower()
        kind: Kind | None = options.input_format or (None if name == STANDARD_INPUT else FORMATS.get(suffix))
        if kind is None:
            guessed = guess(stream, fields)
            kind = guessed.kind
            self.notes.append(guessed.sentence)
        documents = _documents(kind, stream, options, fields)

        def read() -> Iterator[Read]:
            yield from documents
            if owned:
                file.close()

        return Part(kind, read, rereadable=False)


def _kind_of(path: Readable, options: ReadingOptions) -> Kind:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = bool(suffixes) and suffixes[-1] in PACKINGS
    ending = ((suffixes[:-1] if packed else suffixes)[-1:] or [""])[0]
    kind: Kind | None = options.input_format or FORMATS.get(ending)
    if kind is None and not packed:
        kind = ENDINGS.get(ending)
    if kind is None:
        raise InvalidRequestError(
            f"what {str(path)!r} holds cannot be told from its ending: name it {', '.join(FORMATS)}, give a folder of "
            "text files, or state --input-format"
        )
    if packed and kind in TABLE_FORMATS:
        raise InvalidRequestError(f"{str(path)!r} must be unpacked first: a .{kind} file is read in no certain order")
    return kind


def _documents(kind: Kind, stream: Stream, options: ReadingOptions, fields: Fields) -> Iterator[Read]:
    if kind in ("csv", "tsv"):
        return csv_documents(stream, fields, options.delimiter or ("," if kind == "csv" else "\t"))
    return (json_documents if kind in ("json", "jsonl") else line_documents)(stream, fields)


def _count_records(path: Path, kind: Kind) -> int | None:
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
