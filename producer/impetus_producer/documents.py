"""Documents read from files, one at a time, each with its id.

Knows JSON lines, plain lines, CSV, folders and standard input. Knows no Redis, no model and no output file. What
cannot be read as a document becomes a `FailedDocument` with its reason, and the reading goes on.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

from .contract import MAX_PAYLOAD_BYTES, MAX_TEXT_BYTES
from .errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

InputFormat = Literal["jsonl", "txt", "csv"]

TEXT_ENDINGS = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex"})
"""Which files of a folder are documents. Hidden files and folders are left out."""
_FORMATS: dict[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
    ".text": "txt",
    ".csv": "csv",
}
_DEFAULT_ID_FIELD, _DEFAULT_TEXT_FIELD = "id", "text"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the id it is known by."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class FailedDocument:
    """A document that has no vector, and why, in one sentence."""

    id: str
    reason: str


Read: TypeAlias = Document | FailedDocument


@dataclass(frozen=True, slots=True)
class Source:
    """Documents in their order. Iterating reads them as they are needed, so a file may be larger than memory."""

    name: str
    _read: Callable[[], Iterator[Read]]
    _count: Callable[[], int | None]

    def __iter__(self) -> Iterator[Read]:
        return self._read()

    def count(self) -> int | None:
        """About how many documents there are, from a quick look; None where only reading them would tell."""
        return self._count()


def open_source(
    name: str,
    *,
    input_format: InputFormat | None = None,
    id_field: str | None = None,
    text_field: str | None = None,
    stdin: BinaryIO | None = None,
) -> Source:
    """The documents in the file or folder `name`, or on standard input for `-`.

    The format is the one given, else goes by the file's ending; on standard input a first line that opens a JSON
    object means JSON lines, anything else means one document a line.

    Ids: `id_field` of a JSON line or CSV row, by default `id`. Where that default is absent or empty the number of
    the line stands in; where a field was asked for by name its absence fails the document. Of `.txt` and plain lines
    the line's number (from 1) is the id, and an empty line is an empty document. Of a folder it is the path within.

    Raises `InvalidRequestError` for what makes all of the input unreadable, such as a CSV file without the column.
    """
    fields = _Fields(id_field or _DEFAULT_ID_FIELD, text_field or _DEFAULT_TEXT_FIELD, id_required=id_field is not None)
    if name == "-":
        stream = stdin if stdin is not None else sys.stdin.buffer
        return Source("standard input", lambda: _read_stdin(stream, input_format, fields), lambda: None)
    path = Path(name)
    if path.is_dir():
        return _open_folder(path)
    kind = input_format or _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InvalidRequestError(
            f"what {name!r} holds cannot be told from its ending: name it .jsonl, .txt or .csv, give a folder of text "
            "files, or state --input-format"
        )
    regular = path.is_file()
    try:
        if kind == "csv" and regular:
            with path.open("rb") as file:
                _columns(next(_csv_rows(file), (1, []))[1], fields, name)
        elif not os.access(path, os.R_OK):
            path.stat()
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise InvalidRequestError(f"{name!r} cannot be read: {error.strerror}") from None

    def read() -> Iterator[Read]:
        with path.open("rb") as file:
            yield from _read_stream(file, kind, fields, name)

    return Source(name, read, lambda: _count_records(path, kind) if regular else None)


@dataclass(frozen=True, slots=True)
class _Fields:
    id: str
    text: str
    id_required: bool


def _read_stdin(stream: BinaryIO, input_format: InputFormat | None, fields: _Fields) -> Iterator[Read]:
    if input_format is not None:
        yield from _read_stream(stream, input_format, fields, "standard input")
        return
    lines = _lines(stream)
    first = next(lines, None)
    if first is None:
        return
    as_json = first[1] is not None and first[1].lstrip().startswith(b"{")
    yield from (_json_documents if as_json else _line_documents)(chain([first], lines), fields)


def _read_stream(file: BinaryIO, kind: InputFormat, fields: _Fields, name: str) -> Iterator[Read]:
    if kind == "csv":
        return _csv_documents(file, fields, name)
    return (_json_documents if kind == "jsonl" else _line_documents)(_lines(file), fields)


Line: TypeAlias = tuple[int, bytes | None]


def _lines(file: BinaryIO) -> Iterator[Line]:
    """Each line's number and bytes, without its end; None for one too long to be held."""
    number = 0
    while line := file.readline(MAX_PAYLOAD_BYTES):
        number += 1
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if len(line) >= MAX_PAYLOAD_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_PAYLOAD_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _line_documents(lines: Iterable[Line], fields: _Fields) -> Iterator[Read]:
    for number, line in lines:
        try:
            yield Document(str(number), _decoded(line))
        except ValueError as error:
            yield FailedDocument(str(number), f"line {number}: {error}")


def _json_documents(lines: Iterable[Line], fields: _Fields) -> Iterator[Read]:
    for number, line in lines:
        if line is not None and not line.strip():
            continue
        document_id = str(number)
        try:
            record = _json_object(_decoded(line))
            document_id = _id(record.get(fields.id), number, fields)
            if fields.text not in record:
                raise ValueError(f"there is no field {fields.text!r}")
            if not isinstance(text := record[fields.text], str):
                raise ValueError(f"the field {fields.text!r} is no string")
            yield Document(document_id, text)
        except ValueError as error:
            yield FailedDocument(document_id, f"line {number}: {error}")


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no JSON: {error.msg}, at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON that can be read: {error}") from None
    if not isinstance(record, dict):
        raise ValueError("this is JSON, but no object")
    return record


def _id(value: Any, number: int, fields: _Fields) -> str:
    if value is None or value == "":
        if fields.id_required:
            raise ValueError(f"there is no id in {fields.id!r}")
        return str(number)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"the id in {fields.id!r} is neither a string nor a number")
    text = str(value)
    if not _is_text(text):
        raise ValueError(f"the id in {fields.id!r} is not valid Unicode")
    return text


def _decoded(line: bytes | None) -> str:
    if line is None:
        raise ValueError(f"it is longer than {MAX_PAYLOAD_BYTES:,} bytes")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"this is not UTF-8, from byte {error.start + 1} on") from None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_rows(file: BinaryIO) -> Iterator[tuple[int, list[str] | str]]:
    """Each record's first line and its columns, or what is wrong with it."""
    # The module's own limit, 131,072 characters, is one setting for the whole process; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_TEXT_BYTES))
    # Bytes that are no UTF-8 pass through as surrogates, so that only the record that holds them fails.
    rows = csv.reader((line or b"").decode(errors="surrogateescape") + "\n" for _, line in _lines(file))
    while True:
        number = rows.line_num + 1
        try:
            yield number, next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, str(error)


def _columns(header: list[str] | str, fields: _Fields, name: str) -> tuple[int | None, int]:
    """Where the id (if anywhere) and the text stand in a row."""
    columns = header if isinstance(header, list) else []
    for field, needed in ((fields.text, True), (fields.id, fields.id_required)):
        if needed and field not in columns:
            raise InvalidRequestError(f"{name!r} has no column {field!r}; its first line names {', '.join(columns)!r}")
    return (columns.index(fields.id) if fields.id in columns else None), columns.index(fields.text)


def _csv_documents(file: BinaryIO, fields: _Fields, name: str) -> Iterator[Read]:
    rows = _csv_rows(file)
    id_at, text_at = _columns(next(rows, (1, []))[1], fields, name)
    for number, row in rows:
        document_id = str(number)
        try:
            if isinstance(row, str):
                raise ValueError(row)
            if not row:
                continue
            document_id = _id(row[id_at] if id_at is not None and id_at < len(row) else None, number, fields)
            if text_at >= len(row):
                raise ValueError(f"there is no column {fields.text!r}")
            if not _is_text(row[text_at]):
                raise ValueError("this is not UTF-8")
            yield Document(document_id, row[text_at])
        except ValueError as error:
            yield FailedDocument(document_id, f"line {number}: {error}")


def _open_folder(folder: Path) -> Source:
    if next(_text_files(folder), None) is None:
        raise InvalidRequestError(
            f"there are no text files in the folder {str(folder)!r}: looked for {', '.join(sorted(TEXT_ENDINGS))}"
        )
    return Source(
        str(folder),
        lambda: (_file_document(folder, path) for path in _text_files(folder)),
        lambda: sum(1 for _ in _text_files(folder)),
    )


def _text_files(folder: Path) -> Iterator[Path]:
    """The text files under a folder, each folder's own files before those of its sub-folders, in order of name."""
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in TEXT_ENDINGS and not name.startswith("."):
                yield Path(at, name)


def _file_document(folder: Path, path: Path) -> Read:
    document_id = os.fsencode(path.relative_to(folder).as_posix()).decode(errors="backslashreplace")
    try:
        if not path.is_file():
            raise ValueError("this is no regular file")
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError(f"the file is longer than {MAX_TEXT_BYTES:,} bytes")
        return Document(document_id, _decoded(path.read_bytes().removeprefix(_BYTE_ORDER_MARK)))
    except OSError as error:
        return FailedDocument(document_id, f"the file cannot be read: {error.strerror}")
    except ValueError as error:
        return FailedDocument(document_id, str(error))


def _count_records(path: Path, kind: InputFormat) -> int | None:
    with path.open("rb") as file:
        if kind != "csv":
            return _count_lines(file)
        # A record goes on to the next line while a quote is open.
        quotes = records = 0
        for line in file:
            quotes += line.count(b'"')
            records += quotes % 2 == 0
        return max(0, records - 1)


def _count_lines(file: BinaryIO) -> int:
    count, last = 0, b"\n"
    while chunk := file.read(_CHUNK_BYTES):
        count += chunk.count(b"\n")
        last = chunk[-1:]
    return count + (last != b"\n")
