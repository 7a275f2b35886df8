"""What input without a telling name looks like, from its first lines.

A wrong guess would embed thousands of lines that are no documents, so whatever may be something else is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import InvalidRequestError

if TYPE_CHECKING:
    from .bytes.streams import Stream
    from .fields import Fields

_DELIMITERS = ",\t;|"
_NAME = re.compile(r"[^\W\d][\w.-]*")
# `{not json}` and `[1] a footnote` are lines of text.
_BEGINS_JSON = re.compile(r'\{\s*("|\}|$)|\[\s*([\[{"]|$)')


class Guess(NamedTuple):
    kind: Literal["jsonl", "csv", "tsv", "txt"]
    sentence: str


def guess(stream: Stream, fields: Fields) -> Guess:
    """Raises `InvalidRequestError` for what is likely to be none of these."""
    lines = [line for line in stream.head.splitlines() if line.strip()]
    first = lines[0].lstrip() if lines else ""
    where = "its first line" if lines else "nothing being there"
    if _BEGINS_JSON.match(first):
        return _told(stream, "jsonl", "JSON", where)
    if first.strip(' "') == fields.text:
        raise _refusal(stream, f"CSV of one column, {fields.text!r}")
    for delimiter in _DELIMITERS:
        cells = [cell.strip(' "') for cell in first.split(delimiter)]
        if fields.text in cells:
            kind: Literal["csv", "tsv"] = "tsv" if delimiter == "\t" else "csv"
            return _told(stream, kind, kind.upper(), where)
    if first.startswith("<"):
        raise _refusal(stream, "XML or HTML")
    if "\x00" in stream.head:
        raise _refusal(stream, "no text: there are zero bytes in it")
    if _looks_delimited(lines):
        raise _refusal(stream, f"CSV without a column {fields.text!r}")
    return _told(stream, "txt", "one document a line", where)


def _told(stream: Stream, kind: Literal["jsonl", "csv", "tsv", "txt"], what: str, where: str) -> Guess:
    return Guess(kind, f"Reading {stream.name} as {what}, by {where}; --input-format says otherwise.")


def _refusal(stream: Stream, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{stream.name} looks like {what}: state --input-format, csv with --text-field for such a file, or txt for one "
        "document a line"
    )


def _looks_delimited(lines: list[str]) -> bool:
    """Lines of equally many cells, or a first line of nothing but names with cells below it."""
    if len(lines) < 2:
        return False
    for delimiter in _DELIMITERS:
        cells = [cell.strip(' "') for cell in lines[0].split(delimiter)]
        if len(cells) < 2:
            continue
        if len({line.count(delimiter) for line in lines}) == 1:
            return True
        if all(_NAME.fullmatch(cell) for cell in cells) and any(delimiter in line for line in lines[1:]):
            return True
    return False
