"""JSON lines, and JSON that is not in lines: an array of objects, or objects printed over several lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..bytes.streams import MAX_LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...documents import Read
    from ..bytes.streams import Stream
    from ..fields import Fields


def json_documents(stream: Stream, fields: Fields) -> Iterator[Read]:
    """What it begins with tells which of the two it is."""
    return _of_values(stream, fields) if _goes_over_lines(stream.head) else _of_lines(stream, fields)


def _goes_over_lines(head: str) -> bool:
    first, newline, _ = head.lstrip().partition("\n")
    if first.startswith("["):
        return True
    first = first.rstrip()
    # A long line of which only the beginning was looked at may end there with anything.
    if not newline or not first.startswith("{") or first[-1] not in "{[,:":
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return False


def _of_lines(stream: Stream, fields: Fields) -> Iterator[Read]:
    for line in stream.lines():
        if line.problem is not None:
            yield fields.failed(line.problem, line.number, retryable=line.retryable)
        elif text := line.text.strip():
            try:
                record = _parsed(text)
            except ValueError as error:
                yield fields.failed(str(error), line.number)
            else:
                yield fields.of_record(record, line.number)


def _parsed(text: str) -> dict[str, Any]:
    try:
        record = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no JSON: {error.msg}, at character {error.pos + 1}") from None
    except _RepeatedFieldError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(_beyond_reading(error)) from None
    return _checked_object(record)


def _beyond_reading(error: Exception) -> str:
    """Of JSON that is none of the kind that can be read, though it may be well-formed."""
    why = "it is nested too deep" if isinstance(error, RecursionError) else "a number in it has too many digits"
    return f"this is no JSON that can be read: {why}"


def _checked_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("this is JSON, but no object")
    return value


class _RepeatedFieldError(ValueError):
    """An object that has two fields of one name: which of them is meant, nobody knows."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedFieldError(f"there are two fields {next(n for n in names if names.count(n) > 1)!r}")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _of_values(stream: Stream, fields: Fields) -> Iterator[Read]:
    """Ends with the first thing that is not JSON: where the next value begins cannot be known then."""
    text = _Text(stream.texts())
    try:
        in_array = text.next_character() == "["
        if in_array:
            text.skip(1)
        first = True
        while character := text.next_character():
            if in_array and character == "]":
                text.skip(1)
                if text.next_character():
                    yield fields.failed("there is more after the end of the array; it was not read", text.line)
                return
            if in_array and not first:
                if character != ",":
                    raise ValueError("this is no JSON array: Expecting ',' or ']'")
                text.skip(1)
                text.next_character()
            elif character == "," and not first:
                raise ValueError("a comma follows the object: put brackets around all of them, or take the commas away")
            line = text.line
            value = text.value()
            if not isinstance(value, dict) and first:
                raise ValueError("this is a JSON array, but not of objects")
            yield (
                fields.of_record(value, line)
                if isinstance(value, dict)
                else fields.failed("this is JSON, but no object", line)
            )
            first = False
        if in_array:
            raise ValueError("the JSON array is not closed: the file was cut short")
    except ValueError as error:
        yield fields.failed(f"{error}; nothing from here on was read", text.line)


class _Text:
    """JSON values one after the other, of which no more is held than the one being read."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._held = ""
        self._at = 0
        self._ended = False
        self.line = 1

    def next_character(self) -> str:
        """The next that is no white space, which stays; "" at the end."""
        while True:
            held, at = self._held, self._at
            while at < len(held) and held[at] in " \t\r\n":
                at += 1
            self.skip(at - self._at)
            if at < len(held):
                return held[at]
            if not self._read_on(1):
                return ""

    def skip(self, count: int) -> None:
        self.line += self._held.count("\n", self._at, self._at + count)
        self._at += count

    def value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                # An escape or a word such as `true` that is cut off is told some characters before the end.
                cut_off = error.msg.startswith("Unterminated") or error.pos + 12 > len(self._held)
                if cut_off and self._read_on(len(self._held) - self._at):
                    continue
                self.line += self._held.count("\n", self._at, error.pos)
                raise ValueError(f"this is no JSON: {error.msg}") from None
            except _RepeatedFieldError:
                raise
            except (ValueError, RecursionError) as error:
                raise ValueError(_beyond_reading(error)) from None
            if end == len(self._held) and self._read_on(1):
                continue  # a number may go on
            self.skip(end - self._at)
            return value

    def _read_on(self, characters: int) -> bool:
        """Whether there was more. Doubling what is held keeps the tries at a long value few."""
        if self._ended:
            return False
        if len(self._held) - self._at > MAX_LINE_BYTES:
            raise ValueError(f"this value is longer than {MAX_LINE_BYTES:,} characters")
        pieces = [self._held[self._at :]]
        self._at = 0
        wanted = characters
        while wanted > 0:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            pieces.append(piece)
            wanted -= len(piece)
        self._held = "".join(pieces)
        return wanted < characters
