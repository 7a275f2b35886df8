"""Documents of CSV and TSV: which columns the header names, and rows as wide as it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InvalidRequestError
from ..fields import MISSING
from .csv_rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...documents import Read
    from ..bytes.streams import Stream
    from ..fields import Fields

_DELIMITERS = {",": "','", ";": "';'", "\t": "'\\t'", "|": "'|'"}
"""The usual ones, as they are typed on a command line."""


def csv_documents(stream: Stream, fields: Fields, delimiter: str) -> Iterator[Read]:
    """Raises `InvalidRequestError` at once where the header does not name the columns."""
    rows = Rows(stream, delimiter)
    iterator = iter(rows)
    header = next(iterator, None)
    if header is None:
        raise InvalidRequestError(f"{stream.name!r} is empty: its first line should name its columns")
    if header.problem is not None:
        _check_delimiter(stream, fields.text, delimiter)
        raise InvalidRequestError(f"{stream.name!r}, line {header.number}: {header.problem}")
    names = header.cells
    rows.skips_spaces = any(name.startswith(" ") for name in names)
    places = [_place(names, name, stream, delimiter) for name in fields.needed]
    text_at, columns_at = places[0], places[len(places) - len(fields.columns) :]
    has_ids = any(name.strip() == fields.id for name in names)
    id_at = _place(names, fields.id, stream, delimiter) if has_ids else None
    if not has_ids:
        fields = fields.of_nameless()

    def read() -> Iterator[Read]:
        for number, cells, problem, _, retryable in iterator:
            document_id = str(number) if fields.numbered else None
            if id_at is not None and id_at < len(cells):
                document_id = cells[id_at] or None
            if problem is None and len(cells) != len(names):
                problem = _wrong_width(len(cells), len(names), delimiter)
            if problem is not None:
                yield fields.failed(problem, number, document_id, retryable=retryable)
                continue
            yield fields.document(
                document_id if document_id is not None else MISSING,
                cells[text_at],
                [cells[at] for at in columns_at],
                number,
            )

    return read()


def _place(names: list[str], name: str, stream: Stream, delimiter: str) -> int:
    places = [at for at, cell in enumerate(names) if cell == name] or [
        at for at, cell in enumerate(names) if cell.strip() == name
    ]
    if len(places) > 1:
        raise InvalidRequestError(f"{stream.name!r} has {len(places)} columns named {name!r}: which of them is meant?")
    if not places:
        _check_delimiter(stream, name, delimiter)
        raise InvalidRequestError(f"{stream.name!r} has no column {name!r}; its first line names {', '.join(names)!r}")
    return places[0]


def _check_delimiter(stream: Stream, name: str, delimiter: str) -> None:
    """Raises `InvalidRequestError` where another delimiter would find the column."""
    line = stream.head.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    for other, typed in _DELIMITERS.items():
        if other != delimiter and name in [cell.strip(' "') for cell in line.split(other)]:
            raise InvalidRequestError(
                f"{stream.name!r} has no column {name!r}; its first line, {line!r}, looks as if {typed} separated the "
                f"columns: state --delimiter {typed}"
            )


def _wrong_width(width: int, wanted: int, delimiter: str) -> str:
    fields = "1 field" if width == 1 else f"{width} fields"
    advice = f"; put quotes around a field with {_DELIMITERS.get(delimiter, delimiter)} in it" if width > wanted else ""
    return f"it has {fields}, the header has {wanted}{advice}"
