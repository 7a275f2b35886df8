"""The rows of CSV, read strictly: a row whose quotes do not fit fails, and so does all that it may have swallowed.

Knows quotes, lines and delimiters. Knows no columns and no documents. Python's own reader takes the rest of a file for
one field where a quote is not closed, and cannot tell where that quote opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...contract import MAX_TEXT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..bytes.streams import Line, Stream

_MAX_FIELD_CHARACTERS = 2 * MAX_TEXT_BYTES
_NOT_READ = "nothing from here on was read"


class Row(NamedTuple):
    """A row's cells and the line it begins on, or the line of its fault.

    `problem`: why it cannot be read; `cells` are those before the fault. `last`: nothing after it can be read, either.
    """

    number: int
    cells: list[str]
    problem: str | None = None
    last: bool = False
    retryable: bool = False


class _TextAfterQuoteError(Exception):
    pass


class Rows:
    """Iterating gives the rows of a stream, without the blank lines between them."""

    def __init__(self, stream: Stream, delimiter: str) -> None:
        self._lines = stream.lines()
        self._delimiter = delimiter
        self.skips_spaces = False
        """Whether spaces after a delimiter are no part of the cell. Counts from the next row on."""
        self._cells: list[str] = []
        self._quoted: list[str] | None = None
        """What a quoted field holds so far; None outside of one."""
        self._quoted_characters = 0
        self._opened = 0
        self._returns = False
        """Whether a carriage return stands outside of quotes: half a line end, or part of a text."""

    def __iter__(self) -> Iterator[Row]:
        number, problem = 0, None
        for line in self._lines:
            if line.last or (line.problem is not None and not line.text):
                # Whether a quote is open after a line that was not kept, nobody knows.
                reason = line.problem if line.last else f"{line.problem}; {_NOT_READ}"
                yield Row(line.number, [], reason, last=True, retryable=line.retryable)
                return
            if self._quoted is None:
                if line.text in ("\n", "\r\n", "\r"):
                    continue
                number, problem, self._cells = line.number, None, []
                self._quoted_characters, self._returns = 0, False
            problem = problem or line.problem
            try:
                self._take(line.text, line.number)
            except _TextAfterQuoteError:
                fault = self._fault(line)
                yield fault
                if fault.last:
                    return
                self._quoted = None
                continue
            if self._quoted is None:
                if self._quoted_characters > _MAX_FIELD_CHARACTERS:
                    problem = f"a quoted field is longer than {_MAX_FIELD_CHARACTERS:,} characters"
                elif self._returns:
                    problem = problem or "a carriage return stands outside of quotes: does a row end there?"
                yield Row(number, self._cells, problem)
        if self._quoted is not None:
            yield Row(self._opened, self._cells, f"a quote opens here that is never closed; {_NOT_READ}", last=True)

    def _take(self, text: str, number: int) -> None:
        """Adds the cells of a line, or of the rest of a row that began before it."""
        body = text.removesuffix("\n").removesuffix("\r")
        at = 0
        while True:
            if self._quoted is None:
                at = self._after_spaces(body, at)
                if not body.startswith('"', at):
                    end = body.find(self._delimiter, at)
                    cell = body[at:] if end < 0 else body[at:end]
                    self._returns = self._returns or "\r" in cell
                    self._cells.append(cell)
                    if end < 0:
                        return
                    at = end + 1
                    continue
                self._quoted, self._opened = [], number
                at += 1
            end = text.find('"', at)
            while end >= 0 and text.startswith('""', end):
                end = text.find('"', end + 2)
            self._hold(text[at:] if end < 0 else text[at:end])
            if end < 0:
                return
            self._cells.append("".join(self._quoted).replace('""', '"'))
            self._quoted = None
            at = self._after_spaces(body, end + 1)
            if at >= len(body):
                return
            if not body.startswith(self._delimiter, at):
                raise _TextAfterQuoteError
            at += 1

    def _after_spaces(self, body: str, at: int) -> int:
        while self.skips_spaces and body.startswith(" ", at):
            at += 1
        return at

    def _hold(self, text: str) -> None:
        assert self._quoted is not None
        self._quoted_characters += len(text)
        if self._quoted_characters > _MAX_FIELD_CHARACTERS:
            self._quoted.clear()
        else:
            self._quoted.append(text)

    def _fault(self, line: Line) -> Row:
        if self._opened == line.number and line.text.count('"') % 2 == 0:
            # All quotes of this row are on its line, so the next row begins with the next line.
            problem = "text follows a closing quote: write each quote within a quoted field twice"
            return Row(line.number, self._cells[:-1], problem)
        where = "" if self._opened == line.number else f", on line {line.number}"
        problem = f"a quote opens here, and text follows the one that closes it{where}: one is missing or not doubled"
        return Row(self._opened, self._cells[:-1], f"{problem}; {_NOT_READ}", last=True)
