"""A file's bytes as numbered lines of text.

Knows encodings and line ends. Knows no format. A line that cannot be read is that line's problem; bytes that cannot
be read end the stream.
"""

from __future__ import annotations

import codecs
import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ...contract import MAX_PAYLOAD_BYTES
from ...errors import InvalidRequestError
from .encodings import encoding_of
from .packing import DamagedError, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..places.remote import Readable

MAX_LINE_BYTES = MAX_PAYLOAD_BYTES
_HEAD_BYTES = 1 << 16
_HEAD_LINES = 6
_CHUNK_BYTES = 1 << 16


class Line(NamedTuple):
    """A line with its end. `problem`: why it cannot be read; `last`: nothing after it can be, either."""

    number: int
    text: str
    problem: str | None = None
    last: bool = False
    retryable: bool = False

    @property
    def content(self) -> str:
        return self.text.removesuffix("\n").removesuffix("\r")


class Stream:
    """Bytes read once, from front to back, of which the first lines were looked at.

    Raises `InvalidRequestError` for contents that are no text, or not in the encoding that was named.
    """

    def __init__(self, file: BinaryIO, name: str, encoding: str | None = None) -> None:
        self.name = name
        head = _head_of(file)
        self.encoding = encoding_of(head, encoding, name)
        head = head[self.encoding.mark_bytes :]
        self.head = head.decode(self.encoding.name, errors="replace")
        """What it begins with: some lines, or the beginning of a long one."""
        newline = self.encoding.newline
        # Files of old Macs end their lines with a carriage return alone.
        self._newline = b"\r" if newline == b"\n" and newline not in head and b"\r" in head[:-1] else newline
        self._file = io.BufferedReader(_Prepended(head, file), 1 << 20)

    def lines(self) -> Iterator[Line]:
        number = 0
        name = self.encoding.name
        try:
            for data in self._whole_lines() if self._newline == b"\n" else self._split_lines():
                number += 1
                if data is None:
                    yield Line(number, "", f"it is longer than {MAX_LINE_BYTES:,} bytes")
                    continue
                try:
                    yield Line(number, data.decode(name))
                except UnicodeDecodeError as error:
                    yield Line(number, data.decode(name, "replace"), self.encoding.complaint(data, error))
        except OSError as error:
            retryable = not isinstance(error, DamagedError)
            yield Line(number + 1, "", _unreadable(error), last=True, retryable=retryable)

    def texts(self) -> Iterator[str]:
        """The whole in pieces of no particular length. Raises `ValueError` where it cannot be read on."""
        decoder = codecs.getincrementaldecoder(self.encoding.name)()
        try:
            while data := self._file.read1(_CHUNK_BYTES):
                yield decoder.decode(data)
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise ValueError(self.encoding.complaint(error.object, error)) from None
        except OSError as error:
            raise ValueError(_unreadable(error)) from None

    def _whole_lines(self) -> Iterator[bytes | None]:
        """Each line, or None for one too long to be held."""
        readline = self._file.readline
        while data := readline(MAX_LINE_BYTES):
            if len(data) < MAX_LINE_BYTES or data.endswith(b"\n"):
                yield data
                continue
            while (rest := readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None

    def _split_lines(self) -> Iterator[bytes | None]:
        """The same where a line does not end with the byte 10."""
        newline, width = self._newline, len(self._newline)
        rest, too_long = b"", False
        # Reading as much again as is there already keeps long lines from being copied for each piece.
        while data := self._file.read(max(_CHUNK_BYTES, len(rest))):
            searched = max(0, len(rest) - len(rest) % width - width)
            rest += data
            start = 0
            while (end := _end_of_line(rest, newline, max(start, searched))) is not None:
                yield None if too_long else rest[start:end]
                start, too_long = end, False
            rest = rest[start:]
            if len(rest) > MAX_LINE_BYTES:
                rest, too_long = rest[len(rest) - len(rest) % width :], True
        if rest or too_long:
            yield None if too_long else rest


def _end_of_line(data: bytes, newline: bytes, start: int) -> int | None:
    """Where the first line end from `start` on ends; of two or four bytes, it stands at a multiple of them."""
    width = len(newline)
    at = data.find(newline, start)
    while at >= 0 and at % width:
        at = data.find(newline, at + 1)
    return at + width if at >= 0 else None


def _unreadable(error: OSError) -> str:
    return f"{error.strerror or error}; nothing from here on was read"


def _head_of(file: BinaryIO) -> bytes:
    """The first lines that are not blank, as far as they are short. Waits for no more than they."""
    head, seen = b"", 0
    try:
        while seen < _HEAD_LINES and len(head) < _HEAD_BYTES and (line := file.readline(_HEAD_BYTES)):
            head += line
            seen += bool(line.strip())
    except DamagedError:
        # Told again by whoever reads on.
        if not head:
            raise
    return head


class _Prepended(io.RawIOBase):
    """A file whose beginning was read, with that beginning before it again."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._read = getattr(file, "read1", file.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data: bytes = self._head[: len(buffer)] or self._read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_stream(path: Readable, encoding: str | None) -> Iterator[Stream]:
    """The file's text. Raises `OSError` where there is no such file, `InvalidRequestError` where it is no text."""
    with path.open("rb") as file:
        try:
            stream = Stream(unpacked(file, path), str(path), encoding)
        except DamagedError:
            raise InvalidRequestError(
                f"{str(path)!r} does not hold the compressed data that its ending says, or they are damaged from the "
                "beginning"
            ) from None
        yield stream
