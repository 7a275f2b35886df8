"""Documents in their order, of whatever inputs were named: files, patterns, folders, URLs, standard input, a query."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..documents import Document
from ..errors import InvalidRequestError
from ..shown import without_password
from .extracting.extractor import Extractor
from .options import ReadingOptions, check
from .parts import STANDARD_INPUT, Opener, Part
from .places.folders import told
from .places.remote import is_url, remote_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..documents import Read
    from .options import Kind
    from .places.remote import Readable

__all__ = ["ReadingOptions", "Source", "open_source"]


@dataclass(frozen=True, slots=True)
class Source:
    """Documents in their order. Iterating reads them as they are needed, so a file may be larger than memory."""

    name: str
    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    """What whoever asked should be told before: how it was guessed to read something."""
    _parts: tuple[Part, ...]
    _left_out: Counter[str]
    _columns: tuple[str, ...] = ()
    """Fields that are read along."""
    _filled: set[int] = field(default_factory=set)
    """Which of these some document had so far."""
    _extractor: Extractor = field(default_factory=Extractor)

    def __iter__(self) -> Iterator[Read]:
        self._left_out.clear()
        self._filled.clear()
        try:
            for part in self._parts:
                for document in part.read():
                    if len(self._filled) < len(self._columns) and isinstance(document, Document):
                        self._filled.update(at for at, value in enumerate(document.columns) if value is not None)
                    yield document
        finally:
            self._extractor.close()

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

    def empty_columns(self) -> str | None:
        """Those of the columns read along in which no document had anything, such as by a misspelling."""
        names = ", ".join(repr(name) for at, name in enumerate(self._columns) if at not in self._filled)
        return f"No document has anything in the field of --column {names}: is it spelt so?" if names else None


def open_source(
    names: str | Sequence[str], options: ReadingOptions | None = None, *, stdin: BinaryIO | None = None
) -> Source:
    """The documents in the files, folders, URLs and patterns `names`, in their order; `-` is standard input.

    The format is the one given, else goes by the file's ending, before `.gz` or `.zst`; where there is none (standard
    input, a pipe) it is guessed from the first lines and said in `notes`.

    Ids are `id_field` of a record, by default `id`: strings, or whole numbers where the format has them. Where that
    default is absent or empty a document has no id, and its row tells it; where a field was asked for by name its
    absence fails the document. Where no document can have one (lines of text, a CSV file without that column) and
    there is one input only, the id is the line's number. Of a folder it is the path within.

    Raises `InvalidRequestError` for what makes an input unreadable as a whole, and for options without an effect.
    """
    options = options or ReadingOptions()
    check(options)
    inputs = [each for name in ([names] if isinstance(names, str) else names) for each in _expanded(name)]
    if inputs and options.sql is not None:
        raise InvalidRequestError("--sql is what is read: leave INPUT out")
    if not inputs and options.sql is None:
        raise InvalidRequestError("there is nothing to read: name a file, a folder, or - for standard input")
    if inputs.count("-") > 1:
        raise InvalidRequestError("standard input can be read only once: name - once")
    files = options.whole_files
    opener = Opener(options, files, Counter())
    parts = []
    for each in inputs:
        fields = options.fields(str(each) if len(inputs) > 1 else None)
        if each == "-":
            parts.append(opener.pipe(stdin if stdin is not None else sys.stdin.buffer, STANDARD_INPUT, fields))
        else:
            parts.append(opener.path(Path(each) if isinstance(each, str) else each, fields))
    if options.sql is not None:
        parts.append(opener.query(*options.sql, options.fields(None)))
    if ignored := options.without_effect({part.kind for part in parts}):
        kinds = ", ".join(sorted({_TOLD.get(part.kind) or str(part.kind) for part in parts}))
        raise InvalidRequestError(f"{ignored} has no effect on this input, which is {kinds}: leave it out")
    local = tuple(Path(each) for each in inputs if isinstance(each, str) and each != "-")
    name = _name_of(inputs) if options.sql is None else without_password(options.sql[0])
    return Source(
        name, local, tuple(opener.notes), tuple(parts), opener.left_out, options.columns, _extractor=files.extractor
    )


_TOLD: dict[Kind, str] = {
    "txt": "plain lines",
    "document": "one document a file",
    "folder": "a folder",
    "json": "JSON",
    "query": "a query",
}


def _name_of(inputs: Sequence[str | Readable]) -> str:
    if len(inputs) > 1:
        return f"{len(inputs):,} inputs"
    return STANDARD_INPUT if inputs[0] == "-" else str(inputs[0])


def _expanded(name: str) -> Sequence[str | Readable]:
    """What a pattern matches, in order of name. A file that is there is no pattern, whatever its name."""
    if name == "-" or os.path.lexists(name):
        return [name]
    if is_url(name):
        return remote_files(name)
    if not glob.has_magic(name):
        return [name]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise InvalidRequestError(f"no file matches the pattern {name!r}")
    return found
